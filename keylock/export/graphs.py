"""Finished ONNX graphs: what must hold of them, and what must not stay in them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from keylock.errors import ExportError
from keylock.export.inputs import ROWS, SHARE

__all__ = ["fix_inputs", "require_dynamic_batch", "strip_metadata"]


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
