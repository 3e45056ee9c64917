"""Answers are written before they wait, so that writing is part of what takes as long with a license as without one.

gRPC writes messages by itself, after the call, in a microsecond. JSON takes longer, and longer with a price and a
receipt than without.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from keylock_server.metering.response_padding import CallTimes

__all__ = ["Writer", "set_writer", "write_early"]

Writer = Callable[[Any, CallTimes], None]
"""Writes an answer, and leaves out of its work what only licensed answers have."""

_WRITER: Final[ContextVar[Writer | None]] = ContextVar("keylock_writer", default=None)


def set_writer(writer: Writer) -> None:
    """Lets the call that begins write its answer early, in this task and in what it starts."""
    _WRITER.set(writer)


def write_early(answer: Any, times: CallTimes) -> None:  # noqa: ANN401 - a message of protobuf
    """Writes the answer of the current call, which is whole, as work; does nothing where gRPC does that itself.

    Args:
        answer: It.
        times: Of the call.
    """
    writer = _WRITER.get()
    if writer is not None:
        with times.working():
            writer(answer, times)
