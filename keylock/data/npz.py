"""Arrays of one's own, in a NumPy `.npz` file; never unpickled.

Either `train_images`, `train_labels`, `test_images`, `test_labels`, or `images`, `labels` of which a seeded share
becomes the test set. Images are uint8 (count, height, width, 3), or grey (count, height, width); labels are integers
from 0. Optional: `class_names`, and object masks as `train_masks`, `test_masks`, `masks` (count, height, width).
"""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keylock.data._request import DataRequest, preprocessing_of_size
from keylock.data.sets import DataSource, ImageSet, split_by_share
from keylock.errors import DataError

__all__ = ["open_npz"]

Arrays = Mapping[str, NDArray[Any]]

_KNOWN = frozenset(f"{split}{what}" for split in ("", "train_", "test_") for what in ("images", "labels", "masks")) | {
    "class_names"
}
_NOTHING: NDArray[Any] = np.empty(0)
_EXPECTED = (
    "expected train_images, train_labels, test_images and test_labels, or images and labels; optionally class_names"
)


def open_npz(request: DataRequest) -> DataSource:
    """Open an `.npz` file.

    Args:
        request: `path` is the file.

    Returns:
        The data source, with all images in memory.

    Raises:
        DataError: The file is missing or damaged, holds pickled objects, or its arrays have wrong names, shapes,
            types or values.
    """
    path = request.path
    arrays = _load(path)
    if {"train_images", "train_labels", "test_images", "test_labels"} <= arrays.keys():
        train, test = (_image_set(path, arrays, prefix) for prefix in ("train_", "test_"))
        if train.images[0].shape != test.images[0].shape:
            raise DataError(
                f"{path}: training images are {_size(train)} and test images {_size(test)} pixels: scale them alike"
            )
    elif {"images", "labels"} <= arrays.keys():
        train, test = split_by_share(_image_set(path, arrays, ""), test_share=request.test_share, seed=request.seed)
    else:
        raise DataError(f"{path} holds {', '.join(sorted(arrays)) or 'no arrays'}: {_EXPECTED}")
    side = request.image_size
    return DataSource(
        name=path.stem,
        classes=_class_names(path, arrays, train, test),
        train=train,
        test=test,
        preprocessing=preprocessing_of_size((side, side) if side else train.images[0].shape[:2]),
    )


def _load(path: Path) -> Arrays:
    """Read the arrays of the file; those with names of no meaning here are listed, and left empty."""
    damaged = f"{path} is damaged or no .npz file: write it again with numpy.savez"
    try:
        path.open("rb").close()
        if not zipfile.is_zipfile(path):
            raise DataError(damaged)
        with np.load(path, allow_pickle=False) as archive:
            return {name: _read(path, archive, name) if name in _KNOWN else _NOTHING for name in archive.files}
    except FileNotFoundError as exc:
        raise DataError(f"there is no file {path}: check the path") from exc
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as exc:
        raise DataError(damaged) from exc


def _read(path: Path, archive: Mapping[str, Any], name: str) -> NDArray[Any]:
    try:
        array = archive[name]
    except ValueError as exc:
        # NumPy refuses arrays of objects with this error, and headers that make no sense.
        raise DataError(
            f"{path}: {name} holds pickled objects, which are not read: "
            "save it as a plain array, text with dtype=str and images with dtype=uint8"
        ) from exc
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {name} is no array: write the file again with numpy.savez")
    return array


def _image_set(path: Path, arrays: Arrays, prefix: str) -> ImageSet:
    """Return one checked split."""
    images = _images(path, f"{prefix}images", arrays[f"{prefix}images"])
    labels = arrays[f"{prefix}labels"]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{path}: {prefix}labels has shape {labels.shape} and type {labels.dtype}: "
            "it must be one integer for each image"
        )
    masks = arrays.get(f"{prefix}masks")
    if masks is not None and masks.shape != images.shape[:3]:
        raise DataError(f"{path}: {prefix}masks has shape {masks.shape}: it must be {images.shape[:3]} as the images")
    if len(labels) != len(images):
        raise DataError(
            f"{path}: {prefix}images has {len(images)} images and {prefix}labels {len(labels)} labels: pair them up"
        )
    return ImageSet(images, labels.astype(np.int64), None if masks is None else masks.astype(bool))


def _images(path: Path, name: str, images: NDArray[Any]) -> NDArray[np.uint8]:
    """Return images as uint8 (count, height, width, 3)."""
    if images.dtype != np.uint8:
        raise DataError(
            f"{path}: {name} has type {images.dtype}: scale the values to 0..255 and convert them with .astype('uint8')"
        )
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        raise DataError(
            f"{path}: {name} has shape {images.shape}, channels first: move them last with .transpose(0, 2, 3, 1)"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or min(images.shape[1:3]) < 8:
        raise DataError(
            f"{path}: {name} has shape {images.shape}: it must be (count, height, width, 3), at least 8 x 8 pixels"
        )
    if not len(images):
        raise DataError(f"{path}: {name} is empty: add images")
    return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)))


def _class_names(path: Path, arrays: Arrays, train: ImageSet, test: ImageSet) -> tuple[str, ...]:
    """Return the class names, or the labels as names where there are none."""
    names = arrays.get("class_names")
    if names is None:
        highest = max(int(train.labels.max()), int(test.labels.max()) if len(test) else 0)
        return tuple(str(label) for label in range(highest + 1))
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataError(f"{path}: class_names has shape {names.shape} and type {names.dtype}: give a list of texts")
    try:
        return tuple(name.decode("utf-8") if isinstance(name, bytes) else str(name) for name in names.tolist())
    except UnicodeDecodeError:
        raise DataError(f"{path}: class_names are bytes in another encoding than UTF-8: save them as text") from None


def _size(images: ImageSet) -> str:
    height, width = images.images[0].shape[:2]
    return f"{height} x {width}"
