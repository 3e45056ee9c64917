"""Finished graphs run on many images, with the weights that they take."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch

from keylock.errors import ExportError
from keylock.export.graphs import fix_inputs, require_dynamic_batch

__all__ = ["FloatArray", "IntArray", "Weights", "open_graph", "runner", "sums_runner"]

FloatArray = np.ndarray[Any, np.dtype[np.float32]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]

Weights = Mapping[str, FloatArray]
"""Entries of a network's weights by name; a graph is given those that it takes."""

_AT_ONCE = 64


def open_graph(graph: bytes, weights: Weights | None = None) -> Any:  # noqa: ANN401 - ONNX Runtime has no type stubs
    """Open a graph in ONNX Runtime, on as many threads as torch uses.

    Args:
        graph: A serialised model.
        weights: What it is given in the place of its inputs that are no rows.

    Raises:
        ExportError: ONNX Runtime is not installed, or the batch size of the graph is fixed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ExportError("compiled graphs are verified in ONNX Runtime: install keylock[all]") from error
    model = onnx.load_from_string(graph)
    require_dynamic_batch(model)
    if weights:
        fix_inputs(model, weights)
        graph = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def runner(session: Any) -> Callable[..., list[FloatArray]]:  # noqa: ANN401
    """Return a function that runs a graph on at most 64 images at a time, to bound the memory."""

    def run(**rows: Any) -> list[FloatArray]:  # noqa: ANN401
        pieces = [
            session.run(None, {name: value[start : start + _AT_ONCE] for name, value in rows.items()})
            for start in range(0, len(rows["image"]), _AT_ONCE)
        ]
        return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]

    return run


def sums_runner(session: Any) -> Callable[..., FloatArray]:  # noqa: ANN401
    """Return a function that runs a graph of sums over rows, on at most 64 rows at a time."""

    def run(share: FloatArray, **rows: Any) -> FloatArray:  # noqa: ANN401
        parts = [slice(start, start + _AT_ONCE) for start in range(0, share.shape[1], _AT_ONCE)]
        sums: FloatArray = sum(
            session.run(["sums"], {name: value[part] for name, value in rows.items()} | {"share": share[:, part]})[0]
            for part in parts
        )
        return sums

    return run
