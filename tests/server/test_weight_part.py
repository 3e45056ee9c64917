"""What a graph makes of its weights alone is computed once, and the rest computes what the whole did."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from keylock.graphs.binding import bind, inputs_of
from keylock.graphs.weight_part import take_apart
from keylock_server.inference.rounded_weights import rounded

WEIGHT = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
BIAS = np.random.default_rng(1).standard_normal(4).astype(np.float32)
IMAGE = np.random.default_rng(2).standard_normal((2, 3, 8, 8)).astype(np.float32)


def rounding(*more, outputs=()):
    """A convolution whose graph rounds its weights to eight bits, each as large as the largest of them asks for."""
    nodes = [
        helper.make_node("Abs", ["weight"], ["size"]),
        helper.make_node("ReduceMax", ["size"], ["largest"], keepdims=0),
        helper.make_node("Div", ["largest", "steps"], ["scale"]),
        helper.make_node("QuantizeLinear", ["weight", "scale", "zero"], ["whole"]),
        helper.make_node("DequantizeLinear", ["whole", "scale", "zero"], ["rounded"]),
        helper.make_node("Conv", ["image", "rounded", "bias"], ["out"]),
        *more,
    ]
    fixed = [
        numpy_helper.from_array(np.float32(127), "steps"),
        numpy_helper.from_array(np.int8(0), "zero"),
        numpy_helper.from_array(np.bool_(True), "yes"),
    ]
    shapes = {"image": ["batch", 3, 8, 8], "weight": [4, 3, 3, 3], "bias": [4]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("out", *outputs)]
    graph = helper.make_graph(nodes, "rounding", inputs, found, fixed)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def run(content, **feed):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert {entry.name for entry in session.get_inputs()} == set(feed)
    return session.run(None, feed)


def test_the_rest_takes_what_was_made_and_computes_the_same():
    content, given = rounding(), {"weight": WEIGHT, "bias": BIAS}
    parts = take_apart(content, given)
    assert parts.made == ("scale", "whole")
    assert parts.weights == {"bias"}
    assert set(inputs_of(parts.rest)) == {"image", "bias"}
    rest, bound = rounded(content, given)
    assert bound["whole"].dtype == np.int8
    assert set(bound) == {"scale", "whole", "bias"}
    (expected,), (found,) = run(bind(content, given), image=IMAGE), run(bind(rest, bound), image=IMAGE)
    np.testing.assert_array_equal(found, expected)
    # Layers get them in eight bits still, by which runtimes see what to compute in.
    operations = [node.op_type for node in onnx.load_from_string(rest).graph.node]
    assert operations == ["DequantizeLinear", "Conv"]


def test_a_graph_that_makes_nothing_of_its_weights_stays_as_it_is():
    nodes = [helper.make_node("Conv", ["image", "weight", "bias"], ["out"])]
    model = onnx.load_from_string(rounding())
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    content, given = model.SerializeToString(), {"weight": WEIGHT, "bias": BIAS}
    assert take_apart(content, given) is None
    assert rounded(content, given) == (content, given)


def test_what_is_an_answer_itself_is_one_still():
    content, given = rounding(outputs=["largest"]), {"weight": WEIGHT, "bias": BIAS}
    expected = run(bind(content, given), image=IMAGE)
    rest, bound = rounded(content, given)
    for one, other in zip(run(bind(rest, bound), image=IMAGE), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_graph_with_a_graph_inside_stays_as_it_is():
    inner = [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)]
    branch = helper.make_graph([helper.make_node("Identity", ["size"], ["inner"])], "branch", [], inner)
    choice = helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch)
    content, given = rounding(choice, outputs=["chosen"]), {"weight": WEIGHT, "bias": BIAS}
    assert take_apart(content, given) is None
    (_, sizes) = run(bind(content, given), image=IMAGE)
    np.testing.assert_array_equal(sizes, abs(WEIGHT))


@pytest.mark.parametrize("content", [b"\xff" * 64, b"\x0b", b"\x3a\x05ab"])
def test_what_is_no_graph_is_said_to_be_none(content):
    with pytest.raises(ValueError, match=r"cut|no protobuf"):
        take_apart(content, ["weight"])
