"""The masks of a backward pass as single operations.

Whether an activation lets a gradient pass is traced as a comparison whose truth becomes a number: two or four
operations over every feature map, among the dearest of an input gradient. A ramp that is steep enough is the same step.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from keylock.export.graphs import keep_nodes, needed_nodes

__all__ = ["steepen_masks"]

_SLOPE = 2.0**100
"""A power of two, so that a product with it is exact: the ramp is the step but for values within 2**-100 of it."""


def steepen_masks(model: onnx.ModelProto) -> None:
    """Replace comparisons with constants, cast to float32, by ramps, in place.

    `x > a` becomes `HardSigmoid(x)`, which is `max(0, min(1, slope x + offset))`; `x > a and x < b` the product of two.
    """
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer if not tensor.dims}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        ramps = _ramps(node, made, constants)
        if len(ramps) == 1:
            ramps[0].output[:] = node.output
        elif ramps:
            ramps.append(helper.make_node("Mul", [ramp.output[0] for ramp in ramps], node.output, node.name))
        nodes += ramps or [node]
    keep_nodes(graph, needed_nodes(nodes, {value.name for value in graph.output}))


def _ramps(
    node: onnx.NodeProto, made: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """Return what computes the mask that a node casts: one ramp or two, or none where it is no such mask."""
    if node.op_type != "Cast" or node.attribute[0].i != TensorProto.FLOAT or node.input[0] not in made:
        return []
    truth = made[node.input[0]]
    parts = [made.get(name) for name in truth.input] if truth.op_type == "And" else [truth]
    ramps = []
    for index, part in enumerate(parts):
        if part is None or part.op_type not in {"Greater", "Less"} or part.input[1] not in constants:
            return []
        bound = numpy_helper.to_array(constants[part.input[1]])
        if bound.dtype != np.float32 or abs(bound) > 2**20:
            return []
        slope = _SLOPE if part.op_type == "Greater" else -_SLOPE
        name = f"{node.name}_ramp_{index}"
        ramps.append(
            helper.make_node("HardSigmoid", part.input[:1], [name], name, alpha=slope, beta=-slope * float(bound))
        )
    return ramps
