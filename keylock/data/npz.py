"""Arrays of one's own, in a NumPy `.npz` file; never unpickled.

Either `train_images`, `train_labels`, `test_images`, `test_labels`, or `images`, `labels` of which a seeded share
becomes the test set; `keylock.data.arrays` knows other names for them. Images are uint8 (count, height, width, 3), or
grey (count, height, width); labels are integers from 0. Optional: `class_names`, and object masks as `train_masks`,
`test_masks`, `masks` (count, height, width).
"""

import math
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from keylock.data._request import DataRequest, preprocessing_of_size
from keylock.data.arrays import ArrayNames, Split, find_arrays
from keylock.data.sets import DataSource, ImageSet, split_by_share
from keylock.errors import DataError, ImageError
from keylock.imaging.grey_levels import GreyLevels, agree_on_bits, to_8_bits

__all__ = ["open_npz"]

_HEADERS: Final = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

Arrays = Mapping[str, NDArray[Any]]


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
    found, arrays = _load(path)
    bits, arrays = _scaled(path, found, arrays, request.bits)
    train = _image_set(path, arrays, found.train)
    if found.test is None:
        train, test = split_by_share(train, test_share=request.test_share, seed=request.seed)
    else:
        test = _image_set(path, arrays, found.test)
        if train.images[0].shape != test.images[0].shape:
            raise DataError(
                f"{path}: training images are {_size(train)} and test images {_size(test)} pixels: scale them alike"
            )
    side = request.image_size
    unused = [f"{name} are not used ({len(arrays[split['labels']])} images)" for name, split in found.unused.items()]
    return DataSource(
        name=path.stem,
        classes=_class_names(path, found, arrays, train, test),
        train=train,
        test=test,
        preprocessing=preprocessing_of_size((side, side) if side else train.images[0].shape[:2], bits=bits),
        notes=(*found.notes, *unused),
    )


def _scaled(path: Path, found: ArrayNames, arrays: Arrays, stated: int | None) -> tuple[int | None, Arrays]:
    """Scale images of 16 bits to eight, all on one scale, and return how many bits that is."""
    names = [split["images"] for split in (found.train, found.test) if split is not None]
    deep = [
        name
        for name in names
        if arrays[name].dtype.kind == "u" and arrays[name].dtype.itemsize == 2 and arrays[name].size
    ]
    if not deep:
        return None, arrays
    try:
        levels = [GreyLevels(int(arrays[name].max())) for name in deep]
        bits = agree_on_bits(levels, whose=f"{path} has images with") if stated is None else stated
        return bits, {**arrays, **{name: to_8_bits(arrays[name], bits=bits) for name in deep}}
    except ImageError as error:
        raise DataError(f"{path}: {error.message}" if stated else error.message) from None


def _load(path: Path) -> tuple[ArrayNames, Arrays]:
    """Find out what the arrays of the file are, and read those that are used."""
    damaged = _damaged(path)
    try:
        path.open("rb").close()
        if not zipfile.is_zipfile(path):
            raise DataError(damaged)
        with np.load(path, allow_pickle=False) as archive:
            found = find_arrays(archive.files, place=str(path))
            counted = {split["labels"] for split in found.unused.values()}
            return found, {name: _read(path, archive, name) for name in found.used | counted}
    except FileNotFoundError as exc:
        raise DataError(f"there is no file {path}: check the path") from exc
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as exc:
        raise DataError(damaged) from exc


def _damaged(path: Path) -> str:
    return f"{path} is damaged or no .npz file: write it again with numpy.savez"


def _read(path: Path, archive: NpzFile, name: str) -> NDArray[Any]:
    zipped = archive.zip
    if zipped is None:
        raise DataError(_damaged(path))
    member = name if name in zipped.namelist() else f"{name}.npy"
    try:
        with zipped.open(member) as file:
            _check_header(path, name, file, zipped.getinfo(member).file_size)
        array = archive[name]
    except DataError:
        raise
    except Exception as error:  # NumPy and zipfile raise whatever the damage leads to.
        raise DataError(_damaged(path)) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {name} is not an array: write the file again with numpy.savez")
    return array


def _check_header(path: Path, name: str, file: IO[bytes], size: int) -> None:
    """Refuses arrays of objects, and headers that promise another number of bytes than there are, before any is read.

    Args:
        path: The `.npz` file.
        name: The array.
        file: Its bytes.
        size: How many there are.

    Raises:
        DataError: If it is no such array.
    """
    damaged = f"{path}: {name} is not an array: write the file again with numpy.savez"
    try:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise DataError(damaged)
        shape, _, dtype = _HEADERS[version](file)
        expected = math.prod(shape) * dtype.itemsize
        holds_objects, begins = dtype.hasobject, file.tell()
    except DataError:
        raise
    except (
        Exception
    ) as error:  # The header is a Python literal: damaged ones raise TokenError, SyntaxError, MemoryError...
        raise DataError(damaged) from error
    if holds_objects:
        raise DataError(
            f"{path}: {name} holds pickled objects, which are not read: "
            "save it as a plain array, text with dtype=str and images with dtype=uint8"
        )
    if min(shape, default=0) < 0 or expected != size - begins:
        raise DataError(
            f"{path}: {name} should have {expected} bytes and has {size - begins}: write the file again with "
            "numpy.savez"
        )


def _image_set(path: Path, arrays: Arrays, names: Split) -> ImageSet:
    """Return one checked split."""
    images = _images(path, names["images"], arrays[names["images"]])
    labels = arrays[names["labels"]]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{path}: {names['labels']} has shape {labels.shape} and type {labels.dtype}: "
            "it must be one integer for each image"
        )
    masks = arrays[names["masks"]] if "masks" in names else None
    if masks is not None and masks.shape != images.shape[:3]:
        raise DataError(
            f"{path}: {names['masks']} has shape {masks.shape}: it must be {images.shape[:3]} as the images"
        )
    if len(labels) != len(images):
        raise DataError(
            f"{path}: {names['images']} has {len(images)} images and {names['labels']} {len(labels)} labels: "
            "pair them up"
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


def _class_names(path: Path, found: ArrayNames, arrays: Arrays, train: ImageSet, test: ImageSet) -> tuple[str, ...]:
    """Return the class names, or the labels as names where there are none."""
    if found.class_names is None:
        used = np.unique(train.labels)
        highest = max(int(used[-1]), int(test.labels.max()) if len(test) else 0)
        if used[0] < 0:
            raise DataError(f"{path}: the lowest label is {used[0]}: number the classes from 0")
        if len(used) <= highest:
            missing = next((place for place, label in enumerate(used) if place != label), len(used))
            raise DataError(
                f"{path}: no training image has the label {missing}, and the highest label is {highest}: number the "
                "classes from 0 without gaps"
            )
        return tuple(str(label) for label in range(highest + 1))
    names = arrays[found.class_names]
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataError(
            f"{path}: {found.class_names} has shape {names.shape} and type {names.dtype}: give a list of texts"
        )
    if names.dtype.kind == "U" and names.dtype.itemsize:
        # NumPy takes any number for a character, and Python fails over those that are none.
        native = np.ascontiguousarray(names, names.dtype.newbyteorder("="))
        if native.size and native.view(np.uint32).max() > sys.maxunicode:
            raise DataError(f"{path}: {found.class_names} holds what is not text: save the names again with dtype=str")
    try:
        return tuple(name.decode("utf-8") if isinstance(name, bytes) else str(name) for name in names.tolist())
    except UnicodeDecodeError:
        raise DataError(
            f"{path}: {found.class_names} are bytes in another encoding than UTF-8: save them as text"
        ) from None


def _size(images: ImageSet) -> str:
    height, width = images.images[0].shape[:2]
    return f"{height} x {width}"
