"""Memory that is not needed any more, and goes back to the operating system."""

import contextlib
import ctypes

__all__ = ["give_back"]


def give_back() -> None:
    """Returns free memory to the operating system, where the C library can (glibc).

    Opening graphs takes several times the memory that they need afterwards, and the C library keeps what was freed.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
