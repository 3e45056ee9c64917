"""Files that are whole or not there, and that nobody reads or changes who should not, whatever the umask is.

What is secret or a customer's is `PRIVATE`, what others are meant to read is `PUBLIC`; nothing that is written here can
be changed by others than its owner.
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

__all__ = ["PRIVATE", "PUBLIC", "make_folders", "mode_for", "replacing", "require_writable", "write_file"]

PRIVATE: Final = 0o600
"""For what is secret or belongs to a customer; folders of such are 0700."""
PUBLIC: Final = 0o644
"""For what others are meant to read; folders of such are 0755."""

_READ_TO_ENTER: Final = 2


@contextmanager
def replacing(path: Path, *, mode: int) -> Iterator[Path]:
    """Give a place beside a path to write to, and move what was written there to the path when the block ends.

    Whoever reads the path meanwhile finds what was there before. A block that raises leaves it as it was, and nothing
    half-written beside it: on a full disk that would take the room that is left.

    Args:
        path: Where the file goes.
        mode: `PRIVATE` or `PUBLIC`; until it is whole it is private.

    Raises:
        OSError: The file cannot be moved.
    """
    unfinished = path.with_name(f".{path.name}.new")
    try:
        # Made first, because what writes it takes the mode of a file that is there.
        write_file(unfinished, b"", mode=PRIVATE)
        yield unfinished
        unfinished.chmod(mode)
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def write_file(path: str | os.PathLike[str], content: str | bytes, *, mode: int, new: bool = False) -> None:
    """Write a file of a mode. One that is there keeps what its own mode and this one both allow.

    Args:
        path: Where to.
        content: The bytes, or a text in UTF-8.
        mode: `PRIVATE` or `PUBLIC`.
        new: Whether a file that is there is an error.

    Raises:
        FileExistsError: With `new`, if something is at the path already.
        OSError: The file cannot be written; the error names it, and with `new` nothing of it is left.
    """
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0) | (os.O_EXCL if new else os.O_TRUNC)
    there = os.path.lexists(path)
    descriptor = os.open(path, flags, PRIVATE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            found = os.fstat(file.fileno())
            wanted = stat.S_IMODE(found.st_mode) & mode if there else mode
            if hasattr(os, "fchmod") and stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) != wanted:
                # A file of somebody else that may be written to stays as it is.
                with suppress(PermissionError):
                    os.fchmod(file.fileno(), wanted)
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        # A disk that is full does not say which file it has no room for.
        error.filename = os.fspath(path)
        if new:
            with suppress(OSError):
                os.unlink(path)
        raise


def make_folders(folder: Path, *, mode: int = PUBLIC) -> None:
    """Make a folder and those above it, where they are missing.

    Args:
        folder: The folder; one that is there stays as it is.
        mode: `PRIVATE` for 0700, `PUBLIC` for 0755; a stricter umask counts. Folders above it get 0755.

    Raises:
        OSError: One cannot be made.
    """
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folders(folder.parent)
    folder.mkdir(mode=_of_folder(mode), exist_ok=True)


def mode_for(path: Path, mode: int) -> int:
    """Return the mode of what takes the place of a file: of one that is there no more than it had."""
    try:
        return stat.S_IMODE(path.stat().st_mode) & mode
    except OSError:
        return mode


def _of_folder(mode: int) -> int:
    """Return a mode in which whoever may read may enter too."""
    return mode | (mode & 0o444) >> _READ_TO_ENTER


def require_writable(folder: Path) -> None:
    """Return when files can be made in a folder, or in the nearest one above it where it is missing.

    Permissions do not tell: the file system may be read-only, or full. So a file is made, which has no name.

    Raises:
        OSError: None can be made, or something that is not a folder is in the way.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")
        file.flush()
