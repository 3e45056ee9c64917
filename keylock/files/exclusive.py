"""Folders that one run holds for itself: a second run in the same folder is refused, not mixed with the first.

The lock is the operating system's, on a file in the folder. It ends with the process that holds it, however that ends,
so that a run that was killed leaves nothing to clear away.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from keylock.errors import InUseError, StorageError
from keylock.files.atomic import PRIVATE, make_folders

try:
    import fcntl
except ImportError:  # Windows has no locks of this kind: there two runs are not told apart.
    fcntl = None  # type: ignore[assignment]

__all__ = ["held", "require_free"]

LOCK_FILE = ".in-use"
_LONGEST = 200
_NOT_SUPPORTED = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})


@contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder inside the block; it is made where it is missing.

    Args:
        folder: The folder.
        what: What holds it, for whoever is refused, for example `keylock train`.

    Raises:
        InUseError: Another process holds it; the message says which.
        StorageError: The folder cannot be made or written to.
    """
    place = folder / LOCK_FILE
    try:
        make_folders(folder, mode=PRIVATE)
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    except OSError as error:
        raise StorageError(place, error.strerror or type(error).__name__, "run it again") from error
    try:
        _lock(descriptor, folder)
        os.ftruncate(descriptor, 0)
        # For people; who holds the folder is decided by the lock alone. A full disk is noticed by what follows.
        with suppress(OSError):
            os.pwrite(descriptor, f"{what}, process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        # The file stays: removing it would let two runs hold a lock on two files of one name.
        os.close(descriptor)


def require_free(folder: Path) -> None:
    """Return when no process holds a folder, which may be missing.

    Raises:
        InUseError: One does.
    """
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return
    try:
        _lock(descriptor, folder)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, _LONGEST, 0).decode("utf-8", "replace")
        holder = text if text.isprintable() and text else "another run"
        raise InUseError(folder, holder) from None
    except OSError as error:
        # Some network file systems have no locks; there two runs are not told apart.
        if error.errno not in _NOT_SUPPORTED:
            raise
