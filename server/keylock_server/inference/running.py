"""How a batch comes into a session and its answers out of it, each of them copied as rarely as can be.

On the CPU a session works in the memory that it is handed. On a GPU inputs have to be copied there and outputs back:
once each, if they are bound to the session. The answers are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from keylock_server.inference.devices import CUDA, TENSORRT

__all__ = ["Opened", "Run", "bound", "in_parts", "of_session", "on_the_host", "suited_to"]

Run: TypeAlias = Callable[[Sequence[str], Mapping[str, NDArray[Any]]], list[NDArray[np.float32]]]
"""Takes the names of outputs and the inputs by name, `(batch, ...)` each; returns the outputs, `(batch, ...)` each."""


@dataclass(frozen=True)
class Opened:
    """A graph that is ready to run. Safe to use from several threads.

    Attributes:
        run: Runs batches.
        inputs: Names of what it takes.
        outputs: Names of what it gives.
        providers: What computes it, best first: ONNX Runtime's execution providers, or another runtime.
    """

    run: Run
    inputs: frozenset[str]
    outputs: frozenset[str]
    providers: tuple[str, ...]


def of_session(session: onnxruntime.InferenceSession, *, most_rows: int) -> Opened:
    """Returns a session of ONNX Runtime as a graph that is ready; see `suited_to`."""
    return Opened(
        suited_to(session, most_rows=most_rows),
        frozenset(entry.name for entry in session.get_inputs()),
        frozenset(entry.name for entry in session.get_outputs()),
        tuple(session.get_providers()),
    )


def suited_to(session: onnxruntime.InferenceSession, *, most_rows: int) -> Run:
    """Returns the quickest way to run a session where it is. Safe to use from several threads, as the session is.

    Args:
        session: Runs batches.
        most_rows: How many rows it was made for; TensorRT takes no more at once.
    """
    device = session.get_providers()[0]
    if device == TENSORRT:
        return in_parts(bound(session), most_rows)
    return bound(session) if device == CUDA else on_the_host(session)


def on_the_host(session: onnxruntime.InferenceSession) -> Run:
    """Returns a way in which the session reads its inputs where they are, and makes its outputs in host memory."""

    def run(outputs: Sequence[str], rows: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        feed = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in _contiguous(rows).items()}
        return [value.numpy() for value in session.run_with_ort_values(list(outputs), feed)]

    return run


def bound(session: onnxruntime.InferenceSession) -> Run:
    """Returns a way in which inputs are copied to the session's device when they are bound, and outputs to the host.

    Each run has a binding of its own, because batches differ in size and several threads run at once.
    """

    def run(outputs: Sequence[str], rows: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        binding = session.io_binding()
        # A device that is the host reads these arrays while it runs, so they must last as long.
        held = _contiguous(rows)
        for name, array in held.items():
            binding.bind_cpu_input(name, array)
        for name in outputs:
            binding.bind_output(name, "cpu")
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        # These arrays stand in the memory that the outputs were made in, or copied to.
        return [value.numpy() for value in binding.get_outputs()]

    return run


def in_parts(run: Run, most_rows: int) -> Run:
    """Returns a way to run batches of any size by runs of a few rows, for sessions that take no more at once.

    Args:
        run: Runs the parts.
        most_rows: How many rows a part may have.
    """

    def run_parts(outputs: Sequence[str], rows: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        count = len(next(iter(rows.values())))
        parts = [
            run(outputs, {name: array[start : start + most_rows] for name, array in rows.items()})
            for start in range(0, count, most_rows)
        ]
        return parts[0] if len(parts) == 1 else [np.concatenate(found) for found in zip(*parts, strict=True)]

    return run_parts


def _contiguous(rows: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: np.ascontiguousarray(array) for name, array in rows.items()}
