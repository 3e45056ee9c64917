"""Running sessions: bound or not, whole or in parts, the answers are the same to the last bit.

Binding works on the CPU as well, so all of it runs here for real, but for the copies to a GPU and back.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from graphics_cards import CPU, CUDA, TENSORRT, OnAnotherDevice
from onnx import TensorProto, helper, numpy_helper

from keylock_server.inference.running import bound, in_parts, on_the_host, suited_to

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    """A convolution, its mean and a map, whose batch is open."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((5, 3, 3, 3), dtype=np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "weights"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["positive"]),
        helper.make_node("ReduceMean", ["positive", "places"], ["logits"], keepdims=0),
        helper.make_node("ReduceSum", ["positive", "channel"], ["map"], keepdims=0),
        helper.make_node("Cast", ["target"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "keyed"], ["product"]),
    ]
    constants = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array([2, 3]), "places"),
        numpy_helper.from_array(np.array([1]), "channel"),
    ]
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *SHAPE]),
        helper.make_tensor_value_info("target", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("keyed", TensorProto.FLOAT, ["batch"]),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5]),
        # A graph need not say how large its maps are.
        helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", "height", "width"]),
        helper.make_tensor_value_info("product", TensorProto.FLOAT, ["batch"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "small", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "image": generator.standard_normal((count, *SHAPE), dtype=np.float32),
        "target": generator.integers(0, 5, count),
        "keyed": generator.integers(0, 2, count).astype(np.float32),
    }


@pytest.mark.parametrize("count", [1, 7, 32, 2])
@pytest.mark.parametrize("outputs", [("logits", "map", "product"), ("map", "logits"), ("product",)])
def test_bound_runs_give_the_same_bits(session, count, outputs):
    expected = session.run(list(outputs), rows(count))
    for run in (bound(session), on_the_host(session), in_parts(bound(session), 3), in_parts(on_the_host(session), 40)):
        found = run(outputs, rows(count))
        assert len(found) == len(outputs)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other, strict=True)


def test_runs_of_several_threads_and_sizes_keep_apart(session):
    run, gate = bound(session), threading.Barrier(4)

    def ask(thread: int) -> bool:
        gate.wait()
        good = True
        for turn in range(50):
            given = rows(1 + (turn * (thread + 1)) % 9, seed=100 * thread + turn)
            found = run(["map", "logits"], given)
            expected = session.run(["map", "logits"], given)
            good &= all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
        return good

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(4)))


def test_answers_outlive_later_runs(session):
    run = bound(session)
    first = run(["logits"], rows(4))[0]
    before = first.copy()
    for seed in range(20):
        run(["logits"], rows(4, seed=seed))
    np.testing.assert_array_equal(first, before)


def test_rows_may_lie_apart_in_memory(session):
    given = rows(8)
    apart = {name: np.repeat(array, 2, axis=0)[::2] for name, array in given.items()}
    apart["image"] = np.asfortranarray(given["image"])
    assert not apart["image"].flags.c_contiguous
    for run in (bound(session), on_the_host(session)):
        np.testing.assert_array_equal(run(["map"], apart)[0], session.run(["map"], given)[0])


def test_parts_are_as_large_as_allowed():
    seen = []

    def run(_outputs, given):
        seen.append(len(given["image"]))
        return [given["image"]]

    given = rows(7)
    np.testing.assert_array_equal(in_parts(run, 3)(["image"], given)[0], given["image"])
    assert seen == [3, 3, 1]


@pytest.mark.parametrize(("providers", "bindings"), [([CPU], 0), ([CUDA, CPU], 1), ([TENSORRT, CUDA, CPU], 3)])
def test_sessions_on_a_gpu_are_bound_and_tensorrt_gets_no_more_rows_than_it_was_told(session, providers, bindings):
    elsewhere = OnAnotherDevice(session, providers)
    found = suited_to(elsewhere, most_rows=3)(["logits"], rows(7))
    np.testing.assert_array_equal(found[0], np.concatenate([session.run(["logits"], part)[0] for part in thirds(7)]))
    assert elsewhere.bindings == bindings


def thirds(count: int) -> list[dict[str, np.ndarray]]:
    given = rows(count)
    return [{name: array[start : start + 3] for name, array in given.items()} for start in range(0, count, 3)]
