"""Where images are: a folder of files or Parquet files with an image in each row, on a disk or in an object store."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

from pyarrow import ArrowException, ArrowInvalid, fs, parquet, types

from keylock.data.files import SUFFIXES
from keylock.errors import DataError, InputError

__all__ = ["Listing", "Place", "image_column", "list_data"]

_PARQUET: Final = ".parquet"
_USUAL_COLUMN: Final = "image"
_BYTES: Final = "bytes"


@dataclass(frozen=True)
class Place:
    """A folder or a file, and what reads it.

    Attributes:
        name: As it is told to people: an absolute path, or a URL.
        files: The `pyarrow.fs.FileSystem`.
        path: Its path there.
    """

    name: str
    files: Any
    path: str

    @classmethod
    def of(cls, text: str) -> "Place":
        """Finds out what a text names.

        Args:
            text: A path, or a URL such as `s3://bucket/folder`.

        Raises:
            InputError: If there is nothing that reads such a URL, or it has a password in it.
        """
        if "://" not in text:
            path = Path(text).expanduser().absolute()
            return cls(str(path), fs.LocalFileSystem(), path.as_posix())
        if "@" in urlsplit(text).netloc:
            raise InputError(
                "the URL of the data has a name or a password in it, which every process of the machine could read: "
                "give them in the variables or files of the object store, such as AWS_ACCESS_KEY_ID"
            )
        try:
            files, path = fs.FileSystem.from_uri(text)
        except (ArrowInvalid, OSError, ValueError) as error:
            raise InputError(
                f"{text} cannot be used ({_first_line(error)}): give a folder, or a URL as s3://"
            ) from None
        return cls(text, files, path)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine's own file systems, network drives included."""
        return bool(self.files.type_name == "local")

    def below(self, name: str) -> str:
        """Returns the path of what lies below it; of itself for an empty name."""
        return f"{self.path.rstrip('/')}/{name}" if name else self.path

    def read(self, name: str, *, most: int) -> bytes:
        """Returns the first bytes of a file below it.

        Args:
            name: Its path from here.
            most: How many bytes at most.

        Raises:
            DataError: If it cannot be read.
        """
        try:
            with self.files.open_input_stream(self.below(name)) as stream:
                found: bytes = stream.read(most)
        except OSError as error:
            raise DataError(f"cannot read {name or self.name}: {_why(error)}") from None
        return found


@dataclass(frozen=True)
class Listing:
    """What is to be explained, in its order.

    Attributes:
        kind: `files`, or `parquet`.
        names: Of the files, from the place; of one Parquet file by itself empty.
        column: That has the images in Parquet files; empty for image files.
        passed_over: How many other files there are.
    """

    kind: str
    names: tuple[str, ...]
    column: str
    passed_over: int


def list_data(place: Place, *, column: str | None) -> Listing:
    """Lists a folder of images, a folder of Parquet files, or one Parquet file.

    Args:
        place: The data.
        column: Name of the column with images in Parquet files; None looks for it.

    Raises:
        DataError: If there is nothing, nothing that can be explained, or both kinds of files.
        InputError: If a column was named and there are no Parquet files.
    """
    info = _look(place)
    if info.type == fs.FileType.File:
        if PurePosixPath(place.path).suffix.lower() != _PARQUET:
            raise DataError(f"{place.name} is one file: give a folder of images, or Parquet")
        return Listing("parquet", ("",), image_column(place, "", column), 0)
    images, tables, others = [], [], 0
    for name in _files(place):
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in SUFFIXES:
            images.append(name)
        elif suffix == _PARQUET:
            tables.append(name)
        else:
            others += 1
    if images and tables:
        raise DataError(
            f"{place.name} has {len(images)} image files and {len(tables)} Parquet files: give a folder with one kind"
        )
    if tables:
        return Listing("parquet", tuple(sorted(tables)), image_column(place, min(tables), column), others)
    if not images:
        more = f" among its {others} files" if others else ""
        raise DataError(f"{place.name} has no images{more}: expected {', '.join(sorted(SUFFIXES))} or {_PARQUET}")
    if column is not None:
        raise InputError("column= names a column of Parquet files, and the data are image files: leave it out")
    return Listing("files", tuple(sorted(images)), "", others)


def image_column(place: Place, name: str, column: str | None) -> str:
    """Returns which column of a Parquet file has the images: bytes of files, or structs with such under `bytes`.

    Raises:
        DataError: If there is none, several, or not the one that was named.
    """
    try:
        with place.files.open_input_file(place.below(name)) as file:
            schema = parquet.read_schema(file)
    except (OSError, ArrowException) as error:
        raise DataError(f"cannot read {name or place.name}: {_why(error)}") from None

    def holds_bytes(kind: Any) -> bool:  # noqa: ANN401 - pyarrow has no type stubs
        if types.is_struct(kind):
            return any(part.name == _BYTES and holds_bytes(part.type) for part in kind)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    usable = [part.name for part in schema if holds_bytes(part.type)]
    if column is not None and column not in usable:
        raise DataError(
            f"the column {column!r} of {name or place.name} has no image files: column= takes "
            f"{', '.join(usable) or 'a column of bytes, and there is none'}"
        )
    if column is None and _USUAL_COLUMN not in usable and len(usable) != 1:
        told = f"several columns of bytes ({', '.join(usable)})" if usable else "no column of bytes"
        raise DataError(f"{name or place.name} has {told}: say with column= which has the images")
    return column or (_USUAL_COLUMN if _USUAL_COLUMN in usable else usable[0])


def _look(place: Place) -> Any:  # noqa: ANN401 - pyarrow has no type stubs
    try:
        info = place.files.get_file_info(place.path)
    except OSError as error:
        raise DataError(f"cannot read {place.name}: {_why(error)}") from None
    if info.type == fs.FileType.NotFound:
        raise DataError(f"there is no {place.name}: give a folder of images, or Parquet")
    return info


def _files(place: Place) -> Iterator[str]:
    """Yields the files below a folder, by their paths from it; those whose names begin with a dot do not count."""
    root = place.path.rstrip("/") + "/"
    try:
        found = place.files.get_file_info(fs.FileSelector(place.path, recursive=True))
    except OSError as error:
        raise DataError(f"cannot list {place.name}: {_why(error)}") from None
    for info in found:
        name = info.path.removeprefix(root)
        hidden = any(part.startswith(".") for part in name.split("/"))
        if info.type == fs.FileType.File and not hidden:
            yield name


def _why(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")[:200] or type(error).__name__
