"""Looks at every image file of a data set, so that damaged ones are found before the hours of a training."""

from typing import Final

from keylock.data.files import ImageFiles
from keylock.data.sets import DataSource
from keylock.errors import DataError

__all__ = ["check_images"]

_MEMORY_BYTES: Final = 2 * 2**30


def check_images(source: DataSource) -> None:
    """Decode the image files of a data source, and keep what fits into memory for the training.

    A split whose resized pixels take more than 2 GiB is left to be decoded while training runs.

    Args:
        source: Of any kind; arrays need no look.

    Raises:
        DataError: Files cannot be read; the message counts them by split and names the first ones of each.
    """
    problems = []
    for split, images in (("training", source.train), ("test", source.test)):
        if not isinstance(images.images, ImageFiles) or images.resized_bytes(source.preprocessing) > _MEMORY_BYTES:
            continue
        try:
            images.images.resized(source.preprocessing, kind=f"{split} images")
        except DataError as error:
            problems.append(error.message)
    if problems:
        raise DataError("; ".join(problems))
