"""Graphs in half precision: what is converted, what is not, and that the numbers stay those of float32."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from keylock.export.half import to_float16

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((4, 3, 3, 3)).astype(np.float32)


def floats(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])


@pytest.fixture
def model():
    """A layer between what stays in float32 and what has no half variant; two outputs, one of them used further."""
    nodes = [
        helper.make_node("Mul", ["image", "key"], ["seen"], "before"),
        helper.make_node("Conv", ["seen", "weight"], ["features"], "layer", pads=[1, 1, 1, 1]),
        helper.make_node("Greater", ["features", "zero"], ["active"], "compare"),
        helper.make_node("Cast", ["active"], ["mask"], "mask", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["features", "mask"], ["rectified"], "rectify"),
        helper.make_node("Resize", ["rectified", "", "scales"], ["raised"], "raise"),
        helper.make_node("ReduceMean", ["raised", "axes"], ["pooled"], "pool", keepdims=0),
        helper.make_node("ArgMax", ["pooled"], ["best"], "find", axis=1, keepdims=1),
        helper.make_node("Sub", ["pooled", "pooled"], ["nothing"], "clear"),
        helper.make_node("ReduceMax", ["pooled", "one"], ["top"], "most", keepdims=1),
        helper.make_node("ScatterElements", ["nothing", "best", "top"], ["marked"], "scatter", axis=1, reduction="add"),
        helper.make_node("Clip", ["marked", "least", "most_allowed"], ["clipped"], "clip"),
    ]
    given = {
        "key": np.full((3, 8, 8), 1.001, np.float32),
        "weight": WEIGHT,
        "zero": np.float32(0),
        "scales": np.asarray([1, 1, 2, 2], np.float32),
        "axes": np.asarray([2, 3], np.int64),
        "one": np.asarray([1], np.int64),
        "least": np.float32(-np.inf),
        "most_allowed": np.float32(1e6),
    }
    graph = helper.make_graph(
        nodes,
        "graph",
        [floats("image", 3, 8, 8)],
        [floats("pooled", 4), floats("clipped", 4)],
        [numpy_helper.from_array(value, name) for name, value in given.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})


def test_a_half_graph_computes_what_the_whole_one_does(model):
    images = RANDOM.standard_normal((3, 3, 8, 8)).astype(np.float32)
    expected = run(model, images)
    half = to_float16(model, keep={"before"})
    onnx.checker.check_model(half, full_check=True)
    for found, whole in zip(run(half, images), expected, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, whole, rtol=5e-3, atol=5e-3)
    assert np.abs(expected[1]).max() > 0.1


def test_what_is_kept_and_what_has_no_half_variant_stays_whole(model):
    half = onnx.shape_inference.infer_shapes(to_float16(model, keep={"before"})).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in half.value_info}
    assert kinds["seen"] == kinds["marked"] == TensorProto.FLOAT
    assert kinds["features.half"] == kinds["mask.half"] == kinds["raised.half"] == TensorProto.FLOAT16
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in half.initializer}
    assert weights["key"].dtype == weights["scales"].dtype == np.float32
    assert "weight" not in weights
    np.testing.assert_array_equal(weights["weight.half"], WEIGHT.astype(np.float16))
    # The largest number there is, rather than infinity; what was infinite stays so.
    assert weights["most_allowed.half"] == np.finfo(np.float16).max
    assert weights["least.half"] == -np.inf
