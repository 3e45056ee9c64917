"""One scale for all images of a data set that have more than eight bits."""

import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from keylock.data.files import DEEP_SUFFIXES, DICOM_SUFFIXES, ImageFiles, load_rows
from keylock.errors import DataError, ImageError
from keylock.imaging.decoding import measure
from keylock.imaging.grey_levels import GreyLevels, agree_on_bits

__all__ = ["bits_of_files"]


def bits_of_files(sets: Sequence[ImageFiles], stated: int | None, *, name: str) -> tuple[int | None, int]:
    """Find the scale of the image files of a data set, for which all of those with more than eight bits are read.

    Args:
        sets: The files of every split.
        stated: What the user says; the files may then say what they like.
        name: The data set, for messages.

    Returns:
        The bits, or None where no file has more than eight; and how many have.

    Raises:
        DataError: The files state different scales, or none while all values are low; or there are DICOM files and no
            pydicom.
    """
    paths = [path for files in sets for path in files.paths if path.suffix.lower() in DEEP_SUFFIXES]
    dicom = [path for path in paths if path.suffix.lower() in DICOM_SUFFIXES]
    if dicom and find_spec("pydicom") is None:
        raise DataError(
            f"{name} has {len(dicom)} DICOM files, which need pydicom: pip install '.[dicom]'"
        ).for_missing_extra()
    found: list[GreyLevels] = []
    lock = threading.Lock()

    def look(row: int) -> None:
        try:
            levels = _levels(paths[row])
        except (OSError, ImageError):
            return  # Damaged files are counted and named together, when they are decoded.
        if levels is not None:
            with lock:
                found.append(levels)

    load_rows(paths, look, kind="image files")
    if not found:
        return None, 0
    if stated is not None:
        return stated, len(found)
    try:
        return agree_on_bits(found, whose=f"{name} has images with"), len(found)
    except ImageError as error:
        raise DataError(error.message) from None


def _levels(path: Path) -> GreyLevels | None:
    return measure(path.read_bytes(), dicom=True)
