"""Files that are whole or not there: written beside their place and then moved to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a place beside a path to write to, and move what was written there to the path when the block ends.

    Whoever reads the path meanwhile finds what was there before. A block that raises leaves it as it was.

    Raises:
        OSError: The file cannot be moved.
    """
    unfinished = path.with_name(f".{path.name}.new")
    yield unfinished
    unfinished.replace(path)
