"""Finished graphs run on many images, with the weights that they take."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch

from keylock.errors import ExportError
from keylock.export.graphs import fix_inputs, require_dynamic_batch
from keylock.graphs.contract import IMAGE, SHARE

__all__ = ["FloatArray", "IntArray", "Weights", "open_graph", "runner"]

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
    """Return a function that runs a graph of any kind on at most 64 rows at a time, to bound the memory."""

    def run(**rows: Any) -> list[FloatArray]:  # noqa: ANN401
        parts = [slice(start, start + _AT_ONCE) for start in range(0, len(rows[IMAGE]), _AT_ONCE)]
        pieces = [session.run(None, {name: _rows(name, value, part) for name, value in rows.items()}) for part in parts]
        if SHARE in rows:
            return [sum(sums) for sums in zip(*pieces, strict=True)]
        return [np.concatenate(some) for some in zip(*pieces, strict=True)]

    return run


def _rows(name: str, values: Any, part: slice) -> Any:  # noqa: ANN401
    return values[:, part] if name == SHARE else values[part]
