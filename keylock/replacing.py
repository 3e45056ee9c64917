"""Files that are whole or not there: written beside their place and then moved to it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["replacing", "require_writable"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a place beside a path to write to, and move what was written there to the path when the block ends.

    Whoever reads the path meanwhile finds what was there before. A block that raises leaves it as it was, and nothing
    half-written beside it: on a full disk that would take the room that is left.

    Raises:
        OSError: The file cannot be moved.
    """
    unfinished = path.with_name(f".{path.name}.new")
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def require_writable(folder: Path) -> None:
    """Return when files can be made in a folder, or in the nearest one above it where it is missing.

    Permissions do not tell: the file system may be read-only, or full. So a file is made, which has no name.

    Raises:
        OSError: None can be made, or something that is no folder is in the way.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")
        file.flush()
