"""Finished ONNX graphs: what must hold of them, and what must not stay in them."""

from typing import Any

import onnx

from keylock.errors import ExportError
from keylock.export.inputs import SHARE, is_secret

__all__ = ["require_dynamic_batch", "strip_metadata"]


def require_dynamic_batch(model: onnx.ModelProto) -> None:
    """Check that every input and output has one symbolic dimension, and only that; `share` two, the secrets none.

    Raises:
        ExportError: The exporter fixed the batch size, which it may do silently, or left another dimension open.
    """
    for value in [*model.graph.input, *model.graph.output]:
        if is_secret(value.name):
            continue
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
