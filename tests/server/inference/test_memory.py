"""Memory that opening graphs has freed goes back to the operating system."""

import ctypes
from pathlib import Path

import pytest

from keylock_server.inference.memory import give_back

_BLOCK_BYTES = 64 * 1024
_BLOCKS = 1000


def _resident_bytes() -> int:
    (line,) = (one for one in Path("/proc/self/status").read_text("ascii").splitlines() if one.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_what_was_freed_below_what_is_in_use_is_given_back() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    blocks = [library.malloc(_BLOCK_BYTES) for _ in range(_BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, _BLOCK_BYTES)
    last = blocks.pop()
    for block in blocks:
        library.free(block)
    kept = _resident_bytes()

    give_back()

    assert kept - _resident_bytes() > _BLOCKS * _BLOCK_BYTES * 0.8
    library.free(last)


@pytest.mark.parametrize("error", [AttributeError("malloc_trim"), OSError("no library")])
def test_where_the_c_library_cannot_nothing_happens(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_name: None) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    give_back()
