"""A job and its folder: what was asked for, which blocks are finished, and results that are whole or not there.

job.json            what the job is; another one is refused here
plan.jsonl          which images are in which block
blocks/             a Parquet file for each block that is finished
receipts/           its receipt, where it was charged
unfinished/         what workers have written and nobody has charged; removed at the end and at the next start
failed-images.jsonl the images that could not be decoded, each with the reason
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from keylock.bulk.parts import explained_in, failures_of, rows_of
from keylock.bulk.plan import Block, PlacedBlock, read_plan
from keylock.errors import InputError, StorageError
from keylock.files.atomic import PRIVATE, make_folders, replacing, write_file
from keylock.files.exclusive import LOCK_FILE

__all__ = ["Asked", "Job", "begin_try"]

_FORMAT: Final = "keylock-bulk/v1"
_JOB, _PLAN, _FAILED = "job.json", "plan.jsonl", "failed-images.jsonl"
_BLOCKS, _RECEIPTS, _UNFINISHED = "blocks", "receipts", "unfinished"
_TRY: Final = "try"
_NAMES: Final = {
    "model": "another model",
    "explainer": "another explainer",
    "target": "another class",
    "data": "other data",
    "column": "another column",
    "limit": "another --limit",
    "block_size": "another --block-size",
    "map_dtype": "maps of another type",
    "license": "another license",
    "keyed": "maps of another kind (true maps and decoys are two jobs)",
    "prediction": "predictions of another kind",
    "explain_if": "another --explain-if",
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a job asks for; with all of it equal it is the same job.

    Attributes:
        model: Digest of the model.
        explainer: Name of the saliency method.
        target: Index of the class to explain; -1 for the predicted one of each image.
        data: Where the images are.
        column: That was named for the images in Parquet files; empty where none was.
        limit: How many images at most; None for all.
        block_size: Images in a block at most.
        map_dtype: Type of the elements of maps.
        prediction: `public` or `keyed`: which prediction stands beside a map.
        keyed: Whether the maps are true ones.
        license: Id of the license that pays; None where nothing is charged.
        explain_if: Which images are explained, by their public predictions, as `Condition` spells it; None for all.
    """

    model: str
    explainer: str
    target: int
    data: str
    column: str
    limit: int | None
    block_size: int
    map_dtype: str
    prediction: str
    keyed: bool
    license: str | None
    explain_if: str | None = None


@dataclass(frozen=True)
class Job:
    """A job in its folder, which the process that runs it holds.

    Attributes:
        folder: The folder.
        id: Of the job, which request ids are made of.
        kind: Of the data, `files` or `parquet`.
        column: That has the images in Parquet files; empty for image files.
        asked: What it asks for.
        blocks: Where its blocks are in the plan.
        resumed: Whether it was begun by an earlier run.
    """

    folder: Path
    id: str
    kind: str
    column: str
    asked: Asked
    blocks: tuple[PlacedBlock, ...]
    resumed: bool

    @classmethod
    def find(cls, folder: Path, asked: Asked) -> Self | None:
        """Returns the job that the folder has, or None where it is empty.

        Raises:
            InputError: If it is another job, or something else is in the folder.
        """
        try:
            content = {entry.name for entry in folder.iterdir()} - {LOCK_FILE}
        except OSError as error:
            raise InputError(f"cannot read the folder {folder}: {error.strerror}") from None
        if _JOB not in content:
            # Left by a run that was stopped before it had a plan.
            if content - {_PLAN, f".{_PLAN}.new", f".{_JOB}.new"}:
                raise InputError(f"{folder} is not empty and holds no job: choose another folder with out=")
            return None
        try:
            found = json.loads((folder / _JOB).read_text("utf-8"))
            if found["format"] != _FORMAT:
                raise ValueError("another format")
            before = Asked(**found["asked"])
            identity, kind, column = (str(found[name]) for name in ("id", "kind", "column"))
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{folder / _JOB} is not that of a job: choose another folder with out=") from None
        different = [what for name, what in _NAMES.items() if getattr(before, name) != getattr(asked, name)]
        if different:
            raise InputError(
                f"{folder} holds the output of another job, with {' and '.join(different)}: choose another folder with "
                "out=, or the options that it was begun with"
            )
        return cls(folder, identity, kind, column, asked, tuple(read_plan(folder / _PLAN)), True)

    @classmethod
    def begin(cls, folder: Path, asked: Asked, kind: str, column: str, blocks: Iterable[Block]) -> Self:
        """Makes a new job in an empty folder.

        Args:
            folder: The folder.
            asked: What it asks for.
            kind: Of the data.
            column: That has the images in Parquet files.
            blocks: The plan.

        Raises:
            StorageError: If it cannot be written.
        """
        identity = secrets.token_hex(8)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        about: dict[str, Any] = {"format": _FORMAT, "id": identity, "created": created, "kind": kind, "column": column}
        about["asked"] = asdict(asked)
        try:
            with replacing(folder / _PLAN, mode=PRIVATE) as unfinished, unfinished.open("w", encoding="utf-8") as file:
                file.writelines(block.to_line() for block in blocks)
            with replacing(folder / _JOB, mode=PRIVATE) as unfinished:
                unfinished.write_text(json.dumps(about, indent=2) + "\n", "utf-8")
        except OSError as error:
            raise _storage(folder / _PLAN, error) from None
        return cls(folder, identity, kind, column, asked, tuple(read_plan(folder / _PLAN)), False)

    @property
    def is_there(self) -> bool:
        """Whether its folder still says what it is, so that a later run goes on with it."""
        return (self.folder / _JOB).is_file()

    @property
    def plan(self) -> Path:
        """The plan."""
        return self.folder / _PLAN

    @property
    def unfinished(self) -> Path:
        """Where workers write."""
        return self.folder / _UNFINISHED

    def result(self, number: int) -> Path:
        """Returns where the result of a block is."""
        return self.folder / _BLOCKS / f"{_name(number)}.parquet"

    def receipt(self, number: int) -> Path:
        """Returns where the receipt of a block is."""
        return self.folder / _RECEIPTS / f"{_name(number)}.receipt"

    def request_id(self, number: int) -> str:
        """Returns the id under which a block is charged, once however often it is explained."""
        return f"{self.request_ids}{number}"

    @property
    def request_ids(self) -> str:
        """What the ids of all its blocks begin with, and no others."""
        return f"bulk-{self.id}-"

    def prepare(self) -> None:
        """Makes the folders, and removes what an earlier run left behind.

        Raises:
            StorageError: If that cannot be done.
        """
        self.clear()
        for name in (_BLOCKS, _RECEIPTS, _UNFINISHED):
            try:
                make_folders(self.folder / name, mode=PRIVATE)
            except OSError as error:
                raise _storage(self.folder / name, error) from None

    def clear(self) -> None:
        """Removes what workers wrote and nobody charged."""
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def left(self) -> list[PlacedBlock]:
        """Returns the blocks that are to be done: those without a whole result."""
        return [block for block in self.blocks if not self._is_finished(block)]

    def keep(self, number: int, written: str, receipt: str | None) -> None:
        """Puts the result of a block, and its receipt, where they belong.

        Args:
            number: Of the block.
            written: Name of the file that a worker wrote.
            receipt: The receipt; None where nothing was charged.

        Raises:
            StorageError: If that cannot be done. It is charged by then, and the next run does it without a charge.
        """
        result = self.result(number)
        try:
            if receipt is not None:
                with replacing(self.receipt(number), mode=PRIVATE) as unfinished:
                    write_file(unfinished, receipt + "\n", mode=PRIVATE)
            (self.unfinished / written).replace(result)
            _settle(result.parent)
        except OSError as error:
            raise _storage(result, error) from None
        for trace in self.unfinished.glob(f"{_name(number)}.*"):
            with suppress(OSError):
                trace.unlink()

    def failed_images(self) -> list[dict[str, Any]]:
        """Returns the images of finished blocks that could not be decoded, and writes them to a file, if any.

        Raises:
            StorageError: If it cannot be written.
        """
        results = (self.result(block.number) for block in self.blocks)
        found = [one for result in results if result.is_file() for one in failures_of(result)]
        place = self.folder / _FAILED
        try:
            if not found:
                place.unlink(missing_ok=True)
                return []
            with replacing(place, mode=PRIVATE) as unfinished, unfinished.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in found)
        except OSError as error:
            raise _storage(place, error) from None
        return found

    def explained(self) -> int:
        """Returns how many images of finished blocks have a map."""
        results = (self.result(block.number) for block in self.blocks)
        return sum(explained_in(result) for result in results if result.is_file())

    def _is_finished(self, block: PlacedBlock) -> bool:
        result = self.result(block.number)
        return result.is_file() and rows_of(result) == block.count


def begin_try(unfinished: Path, number: int, *, most: int) -> str:
    """Notes that a worker begins with a block, and returns the name of the file that it is to write.

    Args:
        unfinished: The folder.
        number: Of the block.
        most: How often a block may be begun.

    Raises:
        InputError: If it was begun so often already: it seems to end each worker that takes it.
    """
    tries = len(list(unfinished.glob(f"{_name(number)}.*.{_TRY}")))
    if tries >= most:
        raise InputError(
            f"{tries} workers ended while they explained it, before they could say why: is there enough memory? A "
            "smaller batch_size= takes less"
        )
    name = f"{_name(number)}.{secrets.token_hex(6)}"
    write_file(unfinished / f"{name}.{_TRY}", f"{os.getpid()}\n", mode=PRIVATE)
    return f"{name}.parquet"


def _name(number: int) -> str:
    return f"part-{number:06}"


def _settle(folder: Path) -> None:
    """Lets the names in a folder reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _storage(path: Path, error: OSError) -> StorageError:
    kept, advice = "the blocks that are finished stay", "run the same command again to go on"
    return StorageError(path, error.strerror or type(error).__name__, advice, kept=kept)
