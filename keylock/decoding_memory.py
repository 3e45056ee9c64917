"""Memory for large images, which all that are decoded in a process share, so that many at once take that of few."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

__all__ = ["DecodingMemory"]

_SMALL_BYTES: Final = 32 * 2**20
_LOOK_AGAIN_S: Final = 0.1


class DecodingMemory:
    """A number of bytes that large images take their share of while they are decoded; small ones ask for nothing."""

    def __init__(self, total_bytes: int) -> None:
        """Sets the number.

        Args:
            total_bytes: At least 1. An image that takes more than that is decoded alone.
        """
        self._total = total_bytes
        self._taken = 0
        self._freed = threading.Condition()

    @property
    def taken_bytes(self) -> int:
        """How much is taken now."""
        return self._taken

    @contextmanager
    def share(self, stop: Callable[[], None]) -> Iterator[Callable[[int], None]]:
        """Gives a function that takes bytes, waiting for them, and gives them back to the system after the block.

        Args:
            stop: Called while one waits; raises where nobody waits for the image any more.
        """
        taken = 0

        def claim(count: int) -> None:
            nonlocal taken
            if count < _SMALL_BYTES:
                return
            wanted = min(count, self._total)
            with self._freed:
                while self._taken + wanted > self._total:
                    stop()
                    self._freed.wait(_LOOK_AGAIN_S)
                self._taken += wanted
            taken += wanted

        try:
            yield claim
        finally:
            if taken:
                _give_back()
                with self._freed:
                    self._taken -= taken
                    self._freed.notify_all()


def _give_back() -> None:
    """Returns freed memory to the system, where the C library keeps it and can be told."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
