"""Finished ONNX graphs: what must hold of them, and what must not stay in them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from keylock.errors import ExportError
from keylock.graphs.contract import ROWS, SHARE

__all__ = [
    "Part",
    "fix_inputs",
    "keep_nodes",
    "name_batch",
    "needed_nodes",
    "require_dynamic_batch",
    "strip_metadata",
    "take_part",
]


@dataclass(frozen=True)
class Part:
    """What is wanted of a graph.

    Attributes:
        outputs: Names of its outputs, and what they are called in the part.
        without: Names of inputs that the part does not take.
    """

    outputs: Mapping[str, str]
    without: Collection[str] = ()


def take_part(model: onnx.ModelProto, part: Part) -> onnx.ModelProto:
    """Return a graph that answers with some of the outputs of another, which stays as it is."""
    taken = onnx.ModelProto()
    taken.CopyFrom(model)
    graph = taken.graph
    inputs = [value for value in graph.input if value.name not in part.without]
    outputs = [value for value in graph.output if value.name in part.outputs]
    del graph.input[:], graph.output[:]
    graph.input.extend(inputs)
    graph.output.extend(outputs)
    keep_nodes(graph, needed_nodes(graph.node, set(part.outputs)))
    for names in (*(node.input for node in graph.node), *(node.output for node in graph.node)):
        names[:] = [part.outputs.get(name, name) for name in names]
    for value in graph.output:
        value.name = part.outputs[value.name]
    return taken


def needed_nodes(nodes: Iterable[onnx.NodeProto], wanted: Collection[str]) -> list[onnx.NodeProto]:
    """Return the nodes that lead to wanted values, in their order."""
    kept, wanted = [], set(wanted)
    for node in reversed(list(nodes)):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def keep_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Leave some nodes in a graph, and the constants that they read, in place."""
    used = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)


def require_dynamic_batch(model: onnx.ModelProto) -> None:
    """Check that every input and output has one symbolic dimension, and only that; `share` two, others none.

    Raises:
        ExportError: The exporter fixed the batch size, which it may do silently, or left another dimension open.
    """
    for value in [*(given for given in model.graph.input if given.name in ROWS), *model.graph.output]:
        sizes = value.type.tensor_type.shape.dim
        count = 2 if value.name == SHARE else 1
        for size in sizes[:count]:
            if not size.dim_param:
                raise ExportError(
                    f"the compiled graph only takes batches of {size.dim_value} (at {value.name!r}): the network or "
                    "the explainer computes with the number of images; write it without reading the batch size"
                )
        if any(size.dim_param for size in sizes[count:]):
            raise ExportError(f"the compiled graph leaves more than the batch size of {value.name!r} open")


def name_batch(model: onnx.ModelProto) -> None:
    """Call the open dimension of the first input `batch`, wherever inputs and outputs have it, in place."""
    values = [*model.graph.input, *model.graph.output]
    symbol = values[0].type.tensor_type.shape.dim[0].dim_param
    for size in (size for value in values for size in value.type.tensor_type.shape.dim):
        if symbol and size.dim_param == symbol:
            size.dim_param = "batch"


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes in place: they name files of this machine, and no runtime reads them."""
    graph = model.graph
    holders: list[Any] = [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info]
    for holder in holders:
        del holder.metadata_props[:]
        holder.doc_string = ""
    del graph.value_info[:]


def fix_inputs(model: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> None:
    """Make constants of inputs, in place.

    Args:
        model: A graph.
        values: By the names of inputs; others are left out.
    """
    graph = model.graph
    fixed = [given.name for given in graph.input if given.name in values]
    others = [given for given in graph.input if given.name not in values]
    del graph.input[:]
    graph.input.extend(others)
    graph.initializer.extend(numpy_helper.from_array(values[name], name) for name in fixed)
