"""What a worker does: opens the bundle and its key once, then explains one block after another and writes each.

Nothing here knows Ray. A worker is told names of files and settings; what it returns is digests, counts and names.
"""

import json
import os
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pyarrow import ArrowException, parquet, types

from keylock.bulk.answering import Answerer
from keylock.bulk.handover import take_over
from keylock.bulk.job import Asked, begin_try
from keylock.bulk.parts import Explained, Predicted, Row, write_part
from keylock.bulk.plan import Block, read_block
from keylock.bulk.sources import Place
from keylock.crypto.digests import digest_of
from keylock.errors import DataError, ImageError, InputError, KeylockError
from keylock.imaging.decoding import ImageLimits
from keylock.imaging.framing import read_framed
from keylock.licensing.answers import digests_of
from keylock.licensing.charges import AnswerDigests
from keylock_server.inference.model_loader import Opener
from keylock_server.inference.runtime import ServedModel
from keylock_server.services.requests import limits_for
from keylock_server.settings import ServerSettings
from keylock_server.transport.logs import name_calls

__all__ = ["BlockResult", "Worker", "WorkerOrder"]

_MOST_TRIES: Final = 5
_READERS: Final = 8
_PASSPHRASE: Final = "KEYLOCK_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable


@dataclass(frozen=True, kw_only=True)
class WorkerOrder:
    """What a worker is told, once. There is no secret in it: Ray writes such things down and sends them around.

    Attributes:
        folder: Of the job.
        job: Its id.
        column: That has the images in Parquet files; empty for image files.
        asked: What the job asks for.
        batch_size: Images in one run of a graph at most.
        max_pixels: Most pixels of an image, by the license; None where it does not say.
        settings: Of the server, those that a worker needs, as texts and numbers.
        offline_license: The file that has the sealed key, where that is one.
        variables: The socket that hands over secrets of variables; None where none are needed or each machine has them.
    """

    folder: str
    job: str
    column: str
    asked: Asked
    batch_size: int
    max_pixels: int | None
    settings: dict[str, Any]
    offline_license: str | None
    variables: str | None


@dataclass(frozen=True, kw_only=True)
class BlockResult:
    """What became of a block, as it travels back.

    Attributes:
        number: Of the block.
        images: How many it has.
        written: Name of the file with its results, among the unfinished ones; empty where there is none.
        image_digests: Of the images that could be decoded, in order.
        answer: Digests of what was found out of them, and with it which of them were explained.
        cpu_s: Processor time that it took, in seconds.
        error: Kind and message of what went wrong with all of it; None where nothing did.
        fatal: Whether it will go wrong with every block.
    """

    number: int
    images: int
    written: str = ""
    image_digests: tuple[str, ...] = ()
    answer: AnswerDigests = field(default_factory=AnswerDigests)
    cpu_s: float = 0.0
    error: tuple[str, str] | None = None
    fatal: bool = False

    @property
    def explained(self) -> int:
        """How many of its images were explained."""
        return sum(self.answer.explained)

    def to_text(self) -> str:
        """Returns it as a text."""
        return json.dumps(asdict(self))

    @classmethod
    def of_text(cls, text: str) -> "BlockResult":
        """Reads such a text."""
        found = json.loads(text)
        answer = AnswerDigests(**{name: tuple(values) for name, values in found.pop("answer").items()})
        digests, error = tuple(found.pop("image_digests")), found.pop("error")
        return cls(**found, image_digests=digests, answer=answer, error=None if error is None else tuple(error))


class Worker:
    """Explains blocks. It is made and used in one process; what it cannot do it says in its answers."""

    def __init__(self, order: WorkerOrder) -> None:
        """Opens the bundle and its key."""
        self._order = order
        self._failure: tuple[str, str] | None = None
        try:
            self._open(order)
        except Exception as error:
            self._failure = self._told(error)

    def explain(self, number: int, count: int, offset: int, before: Sequence[bool] | None = None) -> BlockResult:
        """Explains a block and writes its file.

        Args:
            number: Of the block.
            count: How many images it has.
            offset: Of its line in the plan, in bytes.
            before: Which of its images, those left out that could not be decoded, were explained when it was charged,
                where the job has a condition: the same are again. None where it was not charged.
        """
        if self._failure is not None:
            return BlockResult(number=number, images=count, error=self._failure, fatal=True)
        begun = time.process_time()
        try:
            written = begin_try(self._unfinished, number, most=_MOST_TRIES)
            rows, answer = self._explain(read_block(self._plan, offset), before)
            write_part(self._unfinished / written, rows, self._about, blank=self._answerer.blank())
        except Exception as error:
            # A full disk, or a folder that is gone, is the same for every block.
            is_storage = isinstance(error, OSError)
            return BlockResult(number=number, images=count, error=self._told(error), fatal=is_storage)
        return BlockResult(
            number=number,
            images=count,
            written=written,
            image_digests=tuple(row.image_digest for row in rows if row.predicted is not None),
            answer=answer,
            cpu_s=time.process_time() - begun,
        )

    def _open(self, order: WorkerOrder) -> None:
        name_calls()
        folder = Path(order.folder)
        self._plan, self._unfinished = folder / "plan.jsonl", folder / "unfinished"
        if order.job not in _job_in(folder):
            raise InputError(
                "it does not see the folder of the job there: on several machines out= must be a folder that all of "
                "them share, under the same path"
            )
        secrets = {} if order.variables is None else take_over(Path(order.variables))
        passphrase = secrets.pop(_PASSPHRASE, None)
        # Taken out again as soon as the key provider is made; `/proc/PID/environ` does not show what is set later.
        os.environ.update(secrets)
        settings = ServerSettings(**order.settings, **_given(key_passphrase=passphrase))
        if order.offline_license is not None:
            # Afterwards: a server that has one counts units itself, and here another process does.
            settings = settings.model_copy(update={"offline_license": Path(order.offline_license)})
        self._model = Opener(settings).open(settings.sources[0])
        asked, manifest = order.asked, self._model.manifest
        if manifest.model_digest != asked.model:
            raise DataError(f"the bundle there is another one: its model is {manifest.model_digest}")
        self._answerer = Answerer(self._model, asked)
        self._limits = _limits(settings, self._model, order.max_pixels)
        self._place = Place.of(asked.data)
        self._about = {
            "job": order.job,
            "model": manifest.name,
            "model_digest": manifest.model_digest,
            "explainer": self._answerer.explainer,
            **({} if asked.explain_if is None else {"explain_if": asked.explain_if}),
        }

    def _explain(self, block: Block, before: Sequence[bool] | None) -> tuple[list[Row], AnswerDigests]:
        rows: list[Row] = []
        answers: list[AnswerDigests] = []
        again = None if before is None else iter(before)
        for chunk in self._images(block):
            explained, answer = self._explain_chunk(chunk, block.first + len(rows), again)
            rows += explained
            answers.append(answer)
        return rows, _joined(answers)

    def _explain_chunk(
        self, chunk: "Sequence[_Image]", first: int, again: Iterator[bool] | None
    ) -> tuple[list[Row], AnswerDigests]:
        """Explains the images of one run of the graph; those that cannot be decoded are left out of it."""
        pixels: list[NDArray[np.float32]] = []
        errors: list[str | None] = []
        for image in chunk:
            try:
                pixels.append(self._preprocessed(image.data))
                errors.append(None)
            except ImageError as error:
                errors.append(error.message)
        found: Iterator[tuple[Predicted, Explained | None]] = iter(())
        answer = AnswerDigests()
        if pixels:
            written = self._answerer.answer(np.stack(pixels), again)
            found, answer = self._answerer.read(written), digests_of(*written)
        rows = [
            Row(first + place, image.path, image.digest, error=error)
            if error is not None
            else Row(first + place, image.path, image.digest, *next(found))
            for place, (image, error) in enumerate(zip(chunk, errors, strict=True))
        ]
        return rows, answer

    def _preprocessed(self, data: bytes | None) -> NDArray[np.float32]:
        if data is None:
            raise ImageError("there is no image in the row")
        preprocessing = self._model.manifest.preprocessing
        return preprocessing.normalised(read_framed(data, preprocessing, limits=self._limits, dicom=True))

    def _images(self, block: Block) -> "Iterator[list[_Image]]":
        """Yields the images of a block, as many at a time as one run of the graph takes."""
        size, most = self._order.batch_size, self._limits.max_bytes + 1
        if block.group is None:
            with ThreadPoolExecutor(1 if self._place.is_local else _READERS) as pool:
                for start in range(0, block.count, size):
                    names = block.names[start : start + size]
                    found = pool.map(lambda name: self._place.read(name, most=most), names)
                    yield [_Image.of(name, data) for name, data in zip(names, found, strict=True)]
            return
        rows = _rows_of_table(self._place, block, self._order.column)
        for start in range(0, block.count, size):
            yield [_Image.of(path, data) for path, data in rows[start : start + size]]

    def _told(self, error: Exception) -> tuple[str, str]:
        """Returns the kind of an error and what to tell of it, which includes where it happened."""
        where = f"a worker on {socket.gethostname()}"
        if isinstance(error, KeylockError):
            return type(error).__name__, f"{where}: {error.message}"
        if isinstance(error, OSError) and error.strerror:
            return "StorageError", f"{where} cannot use {error.filename}: {error.strerror}"
        # The text of an unknown exception may say anything; the place in the program does not.
        last = traceback.extract_tb(error.__traceback__)[-1]
        return "KeylockError", f"{where}: unexpected {type(error).__name__} at {Path(last.filename).name}:{last.lineno}"


@dataclass(frozen=True, slots=True)
class _Image:
    """An image as it was read: its name, its bytes or None where there are none, and their digest."""

    path: str
    data: bytes | None
    digest: str

    @classmethod
    def of(cls, path: str, data: bytes | None) -> "_Image":
        return cls(path, data, digest_of(data or b""))


def _given(**values: Any) -> dict[str, Any]:  # noqa: ANN401 - settings are of many types
    return {name: value for name, value in values.items() if value is not None}


def _job_in(folder: Path) -> str:
    try:
        return (folder / "job.json").read_text("utf-8")
    except OSError:
        return ""


def _limits(settings: ServerSettings, model: ServedModel, max_pixels: int | None) -> ImageLimits:
    """Returns what an image may cost: what it may on a server with these settings, and by the license."""
    pixels = settings.max_image_pixels if max_pixels is None else min(settings.max_image_pixels, max_pixels)
    limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=pixels)
    return limits_for(model.manifest.preprocessing, limits, ratio=settings.max_image_ratio)


def _rows_of_table(place: Place, block: Block, column: str) -> list[tuple[str, bytes | None]]:
    """Returns the images of a block of a Parquet file, each with a name.

    Raises:
        DataError: If they cannot be read.
    """
    name, group = block.names[0], block.group
    try:
        with place.files.open_input_file(place.below(name)) as file:
            found = parquet.ParquetFile(file).read_row_group(group, columns=[column])
        images = found.column(column).combine_chunks().slice(block.start, block.count)
        paths: list[str | None] = [None] * len(images)
        if types.is_struct(images.type):
            parts = [part.name for part in images.type]
            paths = images.field("path").to_pylist() if "path" in parts else paths
            images = images.field("bytes")
        data: list[bytes | None] = images.to_pylist()
    except (OSError, ArrowException, KeyError) as error:
        why = str(error).partition("\n")[0][:200]
        raise DataError(f"cannot read the row group {group} of {name or place.name}: {why}") from None
    rows = range(block.start, block.start + block.count)
    told = name or Path(place.path).name
    named = [f"{told}#{group}.{row}" if path is None else path for row, path in zip(rows, paths, strict=True)]
    return list(zip(named, data, strict=True))


def _joined(answers: Sequence[AnswerDigests]) -> AnswerDigests:
    return AnswerDigests(
        maps=tuple(one for answer in answers for one in answer.maps),
        scalings=tuple(one for answer in answers for one in answer.scalings),
        predictions=tuple(one for answer in answers for one in answer.predictions),
        targets=tuple(one for answer in answers for one in answer.targets),
    )
