"""Image files as a sequence of pixels: decoded when asked for, many at a time, and kept once they are resized.

Damaged files are collected and named together, so that a folder is mended in one go.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keylock.errors import DataError, ImageError
from keylock.imaging.decoding import decode
from keylock.imaging.framing import read_framed
from keylock.imaging.preprocessing import Preprocessing

__all__ = ["DEEP_SUFFIXES", "DICOM_SUFFIXES", "SUFFIXES", "ImageFiles", "decode_file", "load_rows"]

DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
DEEP_SUFFIXES = DICOM_SUFFIXES | {".png", ".tif", ".tiff"}
"""Those of files that may have more than eight bits."""

SUFFIXES = DEEP_SUFFIXES | {".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif"}
"""File names that count as images, in lower case; all other files in an image folder are passed over."""

_NAMED_AT_MOST = 3


class ImageFiles(Sequence[NDArray[np.uint8]]):
    """Image files that are decoded when they are indexed.

    Attributes:
        paths: The files.
        bits: How many bits the values have of those with more than eight; None where each file says it for itself.
    """

    def __init__(self, paths: Sequence[Path], *, bits: int | None = None) -> None:
        self.paths, self.bits = tuple(paths), bits
        self._kept: dict[Preprocessing, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:  # type: ignore[override]  # Slices go through `take`.
        """Decode one file.

        Args:
            index: Which one.

        Returns:
            RGB pixels (height, width, 3), every file in its own size.

        Raises:
            DataError: The file cannot be read or decoded; the message names it.
        """
        try:
            return decode_file(self.paths[index], bits=self.bits)
        except (OSError, ImageError) as exc:
            raise _unreadable([(self.paths[index], exc)], total=1, kind="image files") from exc

    def take(self, indices: NDArray[np.intp]) -> "ImageFiles":
        """Return some of the files, in the order given."""
        return ImageFiles([self.paths[i] for i in indices], bits=self.bits)

    def resized(
        self, preprocessing: Preprocessing, indices: NDArray[np.intp] | None = None, *, kind: str = "image files"
    ) -> NDArray[np.uint8]:
        """Decode files and bring them to the size of the model.

        Args:
            preprocessing: Gives the size and the number of channels.
            indices: Which files (n,); all of them by default. All of them are decoded once and kept.
            kind: What the files are called in messages.

        Returns:
            Pixels (n, H, W, C), not normalised.

        Raises:
            DataError: Files cannot be read or decoded; the message says how many and names the first ones.
        """
        if preprocessing in self._kept:
            kept = self._kept[preprocessing]
            return kept if indices is None else kept[indices]
        wanted = self.paths if indices is None else [self.paths[i] for i in indices]
        height, width = preprocessing.size
        bits = self.bits if preprocessing.bits is None else preprocessing.bits
        pixels = np.empty((len(wanted), height, width, preprocessing.channels), dtype=np.uint8)

        def load(row: int) -> None:
            pixels[row] = read_framed(wanted[row].read_bytes(), preprocessing, bits=bits, dicom=True)

        load_rows(wanted, load, kind=kind)
        if indices is None:
            self._kept[preprocessing] = pixels
        return pixels


def decode_file(path: Path, *, bits: int | None = None) -> NDArray[np.uint8]:
    """Decode one file to RGB pixels (height, width, 3).

    Args:
        path: The file.
        bits: How many bits its values have, where they have more than eight.

    Raises:
        OSError: It cannot be read.
        ImageError: It is not an image, or a damaged one.
    """
    return decode(path.read_bytes(), bits=bits, dicom=True)


def load_rows(paths: Sequence[Path], load: Callable[[int], None], *, kind: str) -> None:
    """Load many files by several threads, and name those that cannot be read together.

    Args:
        paths: The files.
        load: Loads the file of an index and keeps what it needs of it.
        kind: What the files are called in the message.

    Raises:
        DataError: Files cannot be read or decoded; the message says how many and names the first ones.
    """

    def attempt(row: int) -> tuple[Path, Exception] | None:
        try:
            load(row)
        except (OSError, ImageError) as exc:
            return paths[row], exc
        return None

    # Pillow decodes outside the interpreter lock, so threads do: no pickling, no worker processes.
    with ThreadPoolExecutor(max_workers=min(8, cpu_count() or 1)) as pool:
        failed = [failure for failure in pool.map(attempt, range(len(paths))) if failure is not None]
    if failed:
        raise _unreadable(failed, total=len(paths), kind=kind)


def _unreadable(failed: Sequence[tuple[Path, Exception]], *, total: int, kind: str) -> DataError:
    """Return the error that names the files, and the reason of the first one."""
    names = ", ".join(str(path) for path, _ in failed[:_NAMED_AT_MOST])
    more = f" and {len(failed) - _NAMED_AT_MOST} more" if len(failed) > _NAMED_AT_MOST else ""
    first = failed[0][1]
    # The advice of an image error is meant for callers of a server; only what is wrong fits here.
    why = first.message.split(": ")[0] if isinstance(first, ImageError) else (getattr(first, "strerror", "") or "")
    return DataError(
        f"{len(failed)} of {total} {kind} cannot be read ({why or type(first).__name__}): {names}{more}; "
        "replace or remove them"
    )
