"""Masks as ramps: the same as the comparisons, at every number that a feature map holds."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from keylock.export.masks import steepen_masks

NEAR = [np.nextafter(np.float32(6), np.float32(side)) for side in (0, 7)]
VALUES = np.float32([-np.inf, -1e30, -6, -1e-20, -0.0, 0, 1e-20, 0.5, 5.999, NEAR[0], 6, NEAR[1], 7, 1e30, np.inf])


def build(nodes, **constants):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": VALUES})[0]


def operations(model):
    return [node.op_type for node in model.graph.node]


CAST = helper.make_node("Cast", ["truth"], ["y"], "cast", to=TensorProto.FLOAT)
SIDES = [helper.make_node("Greater", ["x", "low"], ["over"]), helper.make_node("Less", ["x", "high"], ["under"])]
MASKS = {
    "one side": ([helper.make_node("Greater", ["x", "low"], ["truth"]), CAST], ["HardSigmoid"]),
    "two sides": (
        [*SIDES, helper.make_node("And", ["under", "over"], ["truth"]), CAST],
        ["HardSigmoid", "HardSigmoid", "Mul"],
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_ramp_is_the_step(name):
    nodes, expected = MASKS[name]
    model = build(nodes, low=np.float32(0), high=np.float32(6))
    before = run(model)
    steepen_masks(model)
    onnx.checker.check_model(model, full_check=True)
    assert operations(model) == expected
    assert not model.graph.initializer
    assert 0 < before.sum() < len(VALUES)
    np.testing.assert_array_equal(run(model), before)


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Greater", ["x", "x"], ["truth"]), CAST],
        [helper.make_node("GreaterOrEqual", ["x", "low"], ["truth"]), CAST],
        [*SIDES, helper.make_node("Or", ["under", "over"], ["truth"]), CAST],
        [
            helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Greater", ["whole", "three"], ["truth"]),
            CAST,
        ],
        [helper.make_node("Greater", ["x", "huge"], ["truth"]), CAST],
        [
            helper.make_node("Greater", ["x", "low"], ["over"]),
            helper.make_node("Not", ["over"], ["truth"]),
            CAST,
        ],
    ],
)
def test_other_comparisons_stay(nodes):
    model = build(nodes, low=np.float32(0), high=np.float32(6), three=np.int64(3), huge=np.float32(1e30))
    before = operations(model)
    steepen_masks(model)
    assert operations(model) == before
