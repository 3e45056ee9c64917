"""Which images are in which block: decided once, written down, and the same however often the job is run.

The plan is a file of lines, one block each, so that a worker reads the one line it needs.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pyarrow import ArrowException, parquet

from keylock.bulk.sources import Listing, Place
from keylock.errors import DataError

__all__ = ["Block", "PlacedBlock", "make_blocks", "read_block", "read_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Images that are explained, written and charged together.

    Attributes:
        number: Of the block, from 0.
        first: The place of its first image among all images.
        count: How many images it has, at least 1.
        names: The image files, or the one Parquet file.
        group: Of Parquet, the row group; None for image files.
        start: Of Parquet, its first row in the row group.
    """

    number: int
    first: int
    count: int
    names: tuple[str, ...]
    group: int | None = None
    start: int = 0

    def to_line(self) -> str:
        """Returns the block as a line of the plan."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")) + "\n"


@dataclass(frozen=True, slots=True)
class PlacedBlock:
    """Where a block is in the plan.

    Attributes:
        number: Of the block.
        count: Its images.
        offset: Of its line in the plan, in bytes.
    """

    number: int
    count: int
    offset: int


def make_blocks(place: Place, listing: Listing, *, size: int, limit: int | None) -> Iterator[Block]:
    """Divides images into blocks.

    Args:
        place: The data.
        listing: What is there.
        size: Images in a block at most. A block of a Parquet file ends where its row group ends.
        limit: How many images at most; None for all.

    Yields:
        The blocks in their order, numbered from 0.

    Raises:
        DataError: If a Parquet file cannot be read.
    """
    pieces = _pieces_of_files(listing, size) if listing.kind == "files" else _pieces_of_tables(place, listing, size)
    first = 0
    for number, piece in enumerate(pieces):
        left = None if limit is None else limit - first
        if left is not None and left <= 0:
            return
        names, count, group, start = piece
        if left is not None and count > left:
            names, count = names[:left], left
        yield Block(number=number, first=first, count=count, names=names, group=group, start=start)
        first += count


def read_plan(path: Path) -> list[PlacedBlock]:
    """Reads where the blocks of a plan are.

    Raises:
        DataError: If it is not a plan.
    """
    placed, offset = [], 0
    try:
        with path.open("rb") as file:
            for line in file:
                found = json.loads(line)
                placed.append(PlacedBlock(int(found["number"]), int(found["count"]), offset))
                offset += len(line)
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged or cannot be read: start anew in another folder") from None
    return placed


def read_block(path: Path, offset: int) -> Block:
    """Reads one block of a plan.

    Args:
        path: The plan.
        offset: Of its line, in bytes.

    Raises:
        DataError: If it is not there.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            found = json.loads(file.readline())
        return Block(**{**found, "names": tuple(found["names"])})
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged or cannot be read: start anew in another folder") from None


_Piece = tuple[tuple[str, ...], int, int | None, int]


def _pieces_of_files(listing: Listing, size: int) -> Iterable[_Piece]:
    for start in range(0, len(listing.names), size):
        names = listing.names[start : start + size]
        yield names, len(names), None, 0


def _pieces_of_tables(place: Place, listing: Listing, size: int) -> Iterable[_Piece]:
    for name in listing.names:
        try:
            with place.files.open_input_file(place.below(name)) as file:
                metadata = parquet.read_metadata(file)
                rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        except (OSError, ArrowException) as error:
            why = str(error).partition("\n")[0][:200]
            raise DataError(f"cannot read {name or place.name}: {why}") from None
        for group, count in enumerate(rows):
            for start in range(0, count, size):
                yield (name,), min(size, count - start), group, start
