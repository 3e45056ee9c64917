"""A finished graph in half precision: float16 from its first layer on.

Inputs and outputs stay in float32, so a server feeds it like any other graph. The sealed weights and the target are
inputs and are converted as the graph runs: nothing in the file depends on them. onnxconverter-common does not serve:
what it makes of a gradient, where nodes of both precisions share a constant, no runtime loads.
"""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

__all__ = ["to_float16"]

_SUFFIX = ".half"
_KEPT = ("HardSigmoid", "ScatterElements", "ScatterND")
"""Operators of which runtimes lack the half variant and fail when they run, and the masks, too steep for float16."""
_FLOAT_INPUTS = {"Resize": (1, 2)}
"""Inputs that are float32 in every variant of an operator: by its kind, their places."""


def to_float16(model: onnx.ModelProto, *, keep: Collection[str]) -> onnx.ModelProto:
    """Compute a graph in float16 but for some nodes.

    Args:
        model: A graph in float32; it is changed.
        keep: Names of nodes that stay in float32.

    Returns:
        The same model.
    """
    graph = shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    wide = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    writer = _Writer({tensor.name: tensor for tensor in model.graph.initializer}, wide)
    for node in list(model.graph.node):
        if node.name in keep or node.op_type in _KEPT:
            writer.keep(node)
        else:
            writer.halve(node)
    for value in model.graph.output:
        writer.widen(value.name)
    used = {name for node in writer.nodes for name in node.input}
    weights = [tensor for tensor in [*model.graph.initializer, *writer.weights] if tensor.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(writer.nodes)
    model.graph.initializer.extend(weights)
    return model


class _Writer:
    """Writes nodes in their order, with conversions where float32 meets float16.

    A value has its own name in float32 and another in float16, and is converted once where both are needed.
    """

    def __init__(self, weights: dict[str, onnx.TensorProto], wide: set[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._given = weights
        self._wide = wide | {name for name, tensor in weights.items() if tensor.data_type == TensorProto.FLOAT}
        self._halved: dict[str, str] = {}
        self._not_wide: set[str] = set()

    def keep(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            self.widen(name)
        self.nodes.append(node)

    def halve(self, node: onnx.NodeProto) -> None:
        for place, name in enumerate(node.input):
            if place in _FLOAT_INPUTS.get(node.op_type, ()):
                self.widen(name)
            elif name in self._wide:
                node.input[place] = self._half(name)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_halved(attribute.t, attribute.t.name))
        for place, name in enumerate(node.output):
            if name in self._wide:
                node.output[place] = self._halved[name] = name + _SUFFIX
                self._not_wide.add(name)
        self.nodes.append(node)

    def widen(self, name: str) -> None:
        """Have a value in float32 as well, if there is none yet."""
        if name in self._not_wide:
            self.nodes.append(helper.make_node("Cast", [self._halved[name]], [name], to=TensorProto.FLOAT))
            self._not_wide.remove(name)

    def _half(self, name: str) -> str:
        if name not in self._halved:
            half = self._halved[name] = name + _SUFFIX
            if name in self._given:
                self.weights.append(_halved(self._given[name], half))
            else:
                self.nodes.append(helper.make_node("Cast", [name], [half], to=TensorProto.FLOAT16))
        return self._halved[name]


def _halved(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    most = np.finfo(np.float16).max
    # What is infinite stays so: it pads what is pooled.
    finite = np.where(np.isfinite(values), np.clip(values, -most, most), values)
    return numpy_helper.from_array(finite.astype(np.float16), name)
