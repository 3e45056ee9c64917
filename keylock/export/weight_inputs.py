"""Weights of a quantised graph as its inputs again.

The quantiser rounds weights that it finds in a graph. Here the rounding becomes operations on inputs instead, in the
quantiser's own way: the scale of an output of a layer is its largest weight divided by 127, that of a bias the product
of the scales of activation and weight. A runtime that is given the weights as constants computes all of it once, when
it loads the graph.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["read_weights_as_they_are", "restore_weight_inputs"]

_LAYERS = ("Conv", "Gemm")
_QUANTISED = "_quantized"
_AXIS, _STEPS, _BIAS_STEPS, _TINY = "outputs.axis", "weights.steps", "biases.steps", "scales.smallest"
_CONSTANTS: dict[str, np.ndarray] = {
    _AXIS: np.asarray([1], np.int64),
    _STEPS: np.asarray(127, np.float32),
    _BIAS_STEPS: np.asarray(2**30, np.float32),
    _TINY: np.asarray(1e-30, np.float32),
}


def read_weights_as_they_are(model: onnx.ModelProto) -> None:
    """Let `Gemm` turn weights itself, in place: the quantiser takes a weight for one only where it is a constant."""
    turned = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Transpose" and [list(entry.ints) for entry in node.attribute] == [[1, 0]]
    }
    inputs = {given.name for given in model.graph.input}
    for node in model.graph.node:
        if node.op_type == "Gemm" and turned.get(node.input[1]) in inputs:
            node.input[1] = turned[node.input[1]]
            attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
            attributes["transB"] = 1 - attributes.get("transB", 0)
            del node.attribute[:]
            node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())


def restore_weight_inputs(model: onnx.ModelProto, weights: Sequence[onnx.ValueInfoProto]) -> None:
    """Make inputs of weights that a quantised graph holds, in place.

    Args:
        model: What the quantiser made, with weights in int8 for each output of their layers, and biases in int32.
        weights: The inputs to be, by the names that the weights had before.

    Raises:
        ValueError: A weight is quantised in another way.
    """
    if not weights:
        return
    graph = model.graph
    names = {given.name for given in weights}
    writer = _Writer(graph, names)
    for node in graph.node:
        if node.op_type in _LAYERS:
            writer.round(node)
    nodes = [*writer.nodes, *graph.node]
    made = names | {name for node in writer.nodes for name in node.output}
    constants = [tensor for tensor in graph.initializer if tensor.name not in made]
    if any(tensor.name.removesuffix(_QUANTISED) in names for tensor in constants):
        raise ValueError("weights of other layers than convolutions and linear ones are quantised")
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in _CONSTANTS.items())
    graph.input.extend(weights)


class _Writer:
    """Writes the operations that come before the graph's own."""

    def __init__(self, graph: onnx.GraphProto, names: Collection[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._names = names
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}

    def round(self, layer: onnx.NodeProto) -> None:
        """Compute the rounded weight and bias of a layer, if they are among those that are to be inputs."""
        activation, weight, bias = (self._makers.get(name) for name in [*layer.input, ""][:3])
        name = self._name(weight)
        if activation is None or weight is None or name is None:
            return
        quantised, scale, zero = weight.input
        outputs, axis = self._constants[quantised].dims[0], [entry.i for entry in weight.attribute]
        if axis != [0] or list(self._constants[scale].dims) != [outputs]:
            raise ValueError(f"{name} has no scale for each output")
        if any(quantised in node.output for node in self.nodes):
            raise ValueError(f"{name} is used by two layers")
        self._add("Flatten", [name], f"{name}.flat", axis=1)
        self._add("Abs", [f"{name}.flat"], f"{name}.sizes")
        self._add("ReduceMax", [f"{name}.sizes", _AXIS], f"{name}.largest", keepdims=0)
        self._add("Div", [f"{name}.largest", _STEPS], f"{name}.step")
        bounds = [f"{name}.step", _TINY]
        bias_name = self._name(bias)
        if bias_name is not None:
            # A bias has to fit into 32 bits, so the scale of a filter of hardly any weight is larger.
            self._add("Abs", [bias_name], f"{bias_name}.size")
            self._add("Mul", [activation.input[1], _BIAS_STEPS], f"{bias_name}.range")
            self._add("Div", [f"{bias_name}.size", f"{bias_name}.range"], f"{bias_name}.step")
            bounds.append(f"{bias_name}.step")
        self._add("Max", bounds, scale)
        self._add("QuantizeLinear", [name, scale, zero], quantised, axis=0)
        if bias is not None and bias_name is not None:
            self._add("Mul", [activation.input[1], scale], bias.input[1])
            self._add("Div", [bias_name, bias.input[1]], f"{bias_name}.share")
            self._add("Round", [f"{bias_name}.share"], f"{bias_name}.rounded")
            self._add("Cast", [f"{bias_name}.rounded"], bias.input[0], to=TensorProto.INT32)
            # The quantiser gives the restored bias the name that it had; that is an input's now.
            layer.input[2] = bias.output[0] = f"{bias_name}.restored"

    def _name(self, reader: onnx.NodeProto | None) -> str | None:
        """Return the name of a weight that is restored from its rounded values, if it is to be an input."""
        if reader is None or reader.op_type != "DequantizeLinear":
            return None
        name: str = reader.input[0].removesuffix(_QUANTISED)
        return name if name in self._names else None

    def _add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:  # noqa: ANN401 - as of `make_node`
        self.nodes.append(helper.make_node(kind, inputs, [output], f"{output}:{kind}", **attributes))
