"""Finished graphs run on many images, with the secrets that they take, and their maps compared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from keylock.adapters import Adapter
from keylock.errors import ExportError
from keylock.export.graphs import fix_inputs, require_dynamic_batch
from keylock.export.inputs import is_secret
from keylock.keys import Key
from keylock.splitting import run_split

__all__ = [
    "FloatArray",
    "IntArray",
    "Secrets",
    "merging_runner",
    "merging_sums_runner",
    "open_graph",
    "runner",
    "secret_inputs",
    "sums_runner",
]

FloatArray = np.ndarray[Any, np.dtype[np.float32]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Secrets:
    """What opens a lock, to prove its keyed maps with.

    Attributes:
        key: The key.
        adapter: The adapter of a two-factor lock, or None.
        reference: The reference model of a two-factor lock, which its keyed maps must agree with; None leaves that out.
    """

    key: Key
    adapter: Adapter | None = None
    reference: nn.Module | None = None


def open_graph(graph: bytes) -> Any:  # noqa: ANN401 - ONNX Runtime has no type stubs
    """Open a graph in ONNX Runtime, on as many threads as torch uses.

    Raises:
        ExportError: ONNX Runtime is not installed, or the batch size of the graph is fixed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ExportError("compiled graphs are verified in ONNX Runtime: install keylock[all]") from error
    require_dynamic_batch(onnx.load_from_string(graph))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def secret_inputs(session: Any, secrets: Secrets | None) -> dict[str, FloatArray]:  # noqa: ANN401
    """Return what a graph takes beside its rows; zeros without secrets, because then every row is keyless."""
    taken = [given for given in session.get_inputs() if is_secret(given.name)]
    if secrets is None or not taken:
        return {given.name: np.zeros(given.shape, np.float32) for given in taken}
    return {"key": secrets.key.reveal(), **({} if secrets.adapter is None else secrets.adapter.tensors())}


def runner(session: Any, secrets: Secrets | None) -> Callable[..., list[FloatArray]]:  # noqa: ANN401
    """Return a function that runs a graph on at most 64 images at a time, to bound the memory."""
    fixed = secret_inputs(session, secrets)

    def run(**rows: Any) -> list[FloatArray]:  # noqa: ANN401
        pieces = [
            session.run(None, {name: value[start : start + 64] for name, value in rows.items()} | fixed)
            for start in range(0, len(rows["image"]), 64)
        ]
        return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]

    return run


def sums_runner(session: Any, secrets: Secrets | None) -> Callable[..., FloatArray]:  # noqa: ANN401
    """Return a function that runs a graph of sums over rows, on at most 64 rows at a time."""
    fixed = secret_inputs(session, secrets)

    def run(share: FloatArray, **rows: Any) -> FloatArray:  # noqa: ANN401
        parts = [slice(start, start + 64) for start in range(0, share.shape[1], 64)]
        sums: FloatArray = sum(
            session.run(
                ["sums"], {name: value[part] for name, value in rows.items()} | {"share": share[:, part]} | fixed
            )[0]
            for part in parts
        )
        return sums

    return run


def merging_runner(
    graph: bytes, weights: Mapping[str, FloatArray], adapter: Adapter | None
) -> Callable[..., list[FloatArray]]:
    """Return a function that runs a mergeable graph: on keyed rows with the adapter merged, on others as published.

    Args:
        graph: What `compile_mergeable` returned, or a variant of it.
        weights: The published ones, by name.
        adapter: What to merge; None where no row will be keyed.
    """
    published = runner(_open_with(graph, weights), None)
    merged = published if adapter is None else runner(_open_with(graph, adapter.merged_into(weights)), None)

    def run(**rows: Any) -> list[FloatArray]:  # noqa: ANN401
        others = {name: value for name, value in rows.items() if name != "keyed"}
        return run_split(rows["keyed"], others, with_key=merged, without=published)

    return run


def merging_sums_runner(graph: bytes, weights: Mapping[str, FloatArray], adapter: Adapter) -> Callable[..., FloatArray]:
    """Return a function that runs a mergeable graph of sums over rows, like `merging_runner`."""
    merged, published = (
        sums_runner(_open_with(graph, given), None) for given in (adapter.merged_into(weights), weights)
    )

    def run(share: FloatArray, *, keyed: FloatArray, **rows: Any) -> FloatArray:  # noqa: ANN401
        sums = [
            add_up(share[:, chosen], **{name: value[chosen] for name, value in rows.items()})
            for chosen, add_up in ((keyed > 0, merged), (keyed <= 0, published))
            if chosen.any()
        ]
        total: FloatArray = np.sum(sums, axis=0)
        return total

    return run


def _open_with(graph: bytes, weights: Mapping[str, FloatArray]) -> Any:  # noqa: ANN401
    model = onnx.load_from_string(graph)
    fix_inputs(model, weights)
    return open_graph(model.SerializeToString())
