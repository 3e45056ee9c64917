"""Ways to compute graphs: what is wrong or slow does not serve, and both runtimes answer alike."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from other_runtime import FILES, IMAGES, Other, loaded, slowed, ways
from safetensors.numpy import save
from sealed_graphs import taking_weights

from keylock.bundle.manifest import WEIGHTS_FILE
from keylock.errors import ServiceError
from keylock.graphs.contract import EXPLANATION
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key, KeySeed
from keylock_server.inference import model_loader, openvino_graphs
from keylock_server.inference.graphs import Loader
from keylock_server.inference.openvino_graphs import OpenVINO
from keylock_server.inference.running import Opened
from keylock_server.inference.way import GraphFiles, Way
from keylock_server.settings import ServerSettings


@pytest.fixture(scope="module")
def openvino() -> OpenVINO:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    return OpenVINO(threads=1, runs=2)


@pytest.mark.parametrize(
    ("runtime", "variant", "expected"),
    [
        ("auto", "float32", ["float32 by onnxruntime"]),
        ("onnxruntime", "float32", ["float32 by onnxruntime"]),
        ("openvino", "float32", ["float32 by openvino"]),
        ("auto", "int8", ["int8 by onnxruntime", "int8 by openvino"]),
        ("auto", "bfloat16", ["bfloat16 by openvino"]),
        ("openvino", "auto", ["float32 by openvino", "int8 by openvino", "bfloat16 by openvino"]),
        # There is no arithmetic in float16 on processors: it is served where it is asked for.
        ("onnxruntime", "auto", ["float32 by onnxruntime", "int8 by onnxruntime"]),
        ("onnxruntime", "float16", ["float16 by onnxruntime"]),
        ("openvino", "float16", ["float32 by onnxruntime"]),
    ],
)
def test_what_is_wanted_and_there_is_tried(runtime, variant, expected):
    assert [str(way) for way in ways(Other(), runtime=runtime, variant=variant).of(FILES)] == expected


def test_numbers_that_the_processor_does_not_have_are_not_tried():
    found = ways(Other(has_bfloat16=False), runtime="openvino", variant="auto").of(FILES)
    assert [way.numbers for way in found] == ["float32", "int8"]


def test_the_faster_of_two_right_ways_serves(tiny, monkeypatch):
    chosen = ways(Other(), runtime="auto", variant="auto")
    monkeypatch.setattr(chosen, "open", slowed(chosen, 0.05))
    assert loaded(tiny, chosen).way.runtime == "openvino"
    assert loaded(tiny, ways(Other(delay_s=0.05), runtime="auto", variant="auto")).way.runtime == "onnxruntime"


def test_a_way_that_computes_something_else_does_not_serve_and_the_log_has_the_figure(tiny, server_log):
    def change(values):
        return values if values.ndim == 2 else values[:, ::-1]

    graph = loaded(tiny, ways(Other(change=change), runtime="openvino"))
    assert str(graph.way) == "float32 by onnxruntime"
    logits, maps = graph.run(EXPLANATION, image=IMAGES, target=np.full(3, -1))
    np.testing.assert_allclose(maps, tiny.maps(IMAGES, np.full(3, -1)), rtol=1e-4)
    np.testing.assert_allclose(logits, tiny.logits(IMAGES), rtol=1e-4)
    assert "not computed in float32 by openvino, whose answers correlate by" in server_log.text
    assert "0.999 is asked for" in server_log.text


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_way_that_gives_no_numbers_does_not_serve(wrong, tiny):
    graph = loaded(tiny, ways(Other(change=lambda values: values * wrong), runtime="openvino", least_pcc=1e-6))
    assert graph.way.runtime == "onnxruntime"


def test_a_way_that_is_wrong_with_the_opened_weights_alone_does_not_serve(tiny, server_log):
    calls = []

    def change(values):
        calls.append(values)
        # The published weights are tried first: their two outputs.
        return values if len(calls) <= 2 or values.ndim == 2 else values[:, ::-1]

    model = taking_weights(tiny.explanation_graph(coarse=False))
    published = onnx.numpy_helper.to_array(tiny.prediction_nodes()[1][0])
    delta = Delta({"weights": published[::-1] - published})
    files = {"whole": model, WEIGHTS_FILE: save({"weights": np.ascontiguousarray(published)})}
    key = Key.derive(KeySeed(bytes(32)), shape=(3, 8, 8), std=(0.25,) * 3, strength=0.1)
    chosen = ways(Other(change=change), runtime="openvino")
    load = Loader(files.__getitem__, key=key, delta=delta, ways=chosen, trial_images=IMAGES)
    graph = load(GraphFiles("a graph", "whole"))
    assert graph.way.runtime == "onnxruntime"
    assert "not computed in float32 by openvino" in server_log.text
    keyed = np.array([1, 0, 1], np.float32)
    _, maps = graph.run(EXPLANATION, keyed=keyed, image=IMAGES, target=np.full(3, -1))
    np.testing.assert_allclose(maps[1], tiny.maps(IMAGES, np.full(3, -1))[1], rtol=1e-4, atol=1e-6)


def test_a_way_that_cannot_compute_a_graph_leaves_it_to_the_other(tiny, server_log):
    assert loaded(tiny, ways(Other(fails=True), runtime="openvino")).way.runtime == "onnxruntime"
    assert "it cannot be computed in float32 by openvino (RuntimeError)" in server_log.text


def test_how_alike_answers_must_be_can_be_set(tiny):
    def change(values):
        return values + (0.05 * values.std() * np.random.default_rng(0).standard_normal(values.shape)).astype("f4")

    assert loaded(tiny, ways(Other(change=change), runtime="openvino", least_pcc=0.98)).way.runtime == "openvino"
    assert loaded(tiny, ways(Other(change=change), runtime="openvino", least_pcc=0.9999)).way.runtime == "onnxruntime"


def test_openvino_answers_as_onnx_runtime_does(openvino, tiny):
    graph = loaded(tiny, ways(openvino, runtime="openvino"))
    assert graph.way.runtime == "openvino"
    assert graph.providers[0].startswith("OpenVINO 20")
    for count in (1, 4, 2):
        images, targets = tiny.images(count), np.arange(count) % 4
        logits, maps = graph.run(EXPLANATION, image=images, target=targets)
        np.testing.assert_allclose(logits, tiny.logits(images), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(maps, tiny.maps(images, targets), rtol=1e-4, atol=1e-5)


def test_threads_do_not_get_each_others_answers(openvino, tiny):
    graph = loaded(tiny, ways(openvino, runtime="openvino"))
    batches = [tiny.images(1 + number % 5) for number in range(40)]
    barrier = threading.Barrier(4)

    def ask(share):
        barrier.wait()
        return [graph.run(EXPLANATION, image=images, target=np.full(len(images), -1)) for images in batches[share::4]]

    with ThreadPoolExecutor(4) as pool:
        for share, answers in enumerate(pool.map(ask, range(4))):
            for images, (logits, maps) in zip(batches[share::4], answers, strict=True):
                np.testing.assert_allclose(logits, tiny.logits(images), rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(maps, tiny.maps(images, np.full(len(images), -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("slope", "edge"), [(1.0, 0.0), (1.0, 0.5), (-1.0, 0.5), (1.0, 6.0), (-1.0, 6.0), (-1.0, 0.0)])
def test_masks_of_gradients_are_steps_in_openvino_too(openvino, slope, edge):
    # What `keylock.export.masks` writes; an offset of 0 is read as .5 there.
    steep = slope * 2.0**100
    node = helper.make_node("HardSigmoid", ["image"], ["map"], alpha=steep, beta=-steep * edge)
    shape = ["batch", 3, 8, 8]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "map")]
    graph = helper.make_graph([node], "mask", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    opened = openvino.open(model.SerializeToString(), {}, numbers="float32")
    images = np.random.default_rng(1).choice(np.float32([-7, -0.01, 0, 0.01, 0.5, 0.51, 5.99, 6, 6.01]), (2, 3, 8, 8))
    (found,) = opened.run(["map"], {"image": images})
    np.testing.assert_array_equal(found, images > edge if slope > 0 else images < edge)


def test_an_input_that_nothing_depends_on_is_taken_all_the_same(openvino):
    values = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2])]
    target = helper.make_tensor_value_info("target", TensorProto.INT64, ["batch"])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["logits"])], "one", [*values, target], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    opened = openvino.open(model, {}, numbers="float32")
    assert opened.inputs == {"image", "target"}
    (found,) = opened.run(["logits"], {"image": np.float32([[1, -1]]), "target": np.int64([0])})
    np.testing.assert_array_equal(found, [[1, 0]])


def test_openvino_writes_no_file(openvino, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded(tiny, ways(openvino, runtime="openvino"))
    assert list(tmp_path.rglob("*")) == []


def test_a_runtime_that_is_not_installed_is_named_with_the_ways_out(monkeypatch):
    monkeypatch.setattr(openvino_graphs, "is_installed", lambda: False)
    with pytest.raises(ServiceError, match=r"pip install 'keylock\[openvino\]', or use runtime=onnxruntime"):
        OpenVINO(threads=1, runs=1)


@pytest.mark.parametrize(
    ("wanted", "on_cpu", "message"),
    [
        ({"runtime": "onnxruntime", "variant": "bfloat16"}, True, "use runtime=openvino, or another variant"),
        ({"runtime": "openvino"}, False, "use device=cpu"),
        ({"variant": "bfloat16"}, False, "use device=cpu"),
    ],
)
def test_settings_that_cannot_be_served_are_refused(wanted, on_cpu, message, vendor):
    settings = ServerSettings(bundle=vendor.bundle, key_file=vendor.key_file, **wanted)
    with pytest.raises(ServiceError, match=message):
        model_loader._openvino(settings, on_cpu=on_cpu)


def test_auto_serves_without_openvino_where_that_is_missing(vendor, monkeypatch):
    monkeypatch.setattr(model_loader, "is_installed", lambda: False)
    settings = ServerSettings(bundle=vendor.bundle, key_file=vendor.key_file, variant="auto")
    assert model_loader._openvino(settings, on_cpu=True) is None


def test_opened_says_what_computes():
    found = ways().open(Way("onnxruntime", "float32", ""), _one(), {}, public=True)
    assert isinstance(found, Opened)
    assert found.providers == ("CPUExecutionProvider",)


def _one() -> bytes:
    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["logits"])], "one", [value], [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
