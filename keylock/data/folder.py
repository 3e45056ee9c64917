"""Folders of image files, one folder for each class: the layout torchvision's ImageFolder reads.

Two layouts are known: `train/CLASS/*.png` with `test/CLASS/*.png` (or one of their other usual names), and
`CLASS/*.png` alone, of which a seeded share becomes the test set. Files are found at any depth below their class.
Beside them may lie `masks/` and `boxes.csv`, which say where the objects are.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from keylock.data._request import DataRequest, preprocessing_of_size
from keylock.data.files import SUFFIXES, ImageFiles
from keylock.data.regions import MASKS_FOLDER, Box, ObjectRegions, find_regions, mask_file, read_boxes
from keylock.data.sets import Augmentation, DataSource, ImageSet, split_by_share
from keylock.errors import DataError
from keylock.preprocessing import Preprocessing

__all__ = ["open_folder"]

_TRAIN_NAMES = ("train", "training", "trainval")
_TEST_NAMES = ("test", "val", "valid", "validation")
_LAYOUT = "expected train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png"
_SMALL_SIDE = 128
_LARGE_SIZE = (224, 224)
_PROBES = 32


def open_folder(request: DataRequest) -> DataSource:
    """Open an image folder.

    Args:
        request: `path` is the folder.

    Returns:
        The data source; its files are listed, and decoded when they are first needed.

    Raises:
        DataError: The folder has another layout, a class without images, or masks or boxes for some test images only.
    """
    folder = request.path
    try:
        train, test, classes = _find(folder, request)
    except OSError as exc:
        raise DataError(f"the folder {exc.filename} cannot be read ({exc.strerror}): check its permissions") from exc
    preprocessing = _preprocessing(train, request)
    return DataSource(
        name=folder.resolve().name,
        classes=classes,
        train=train,
        test=test,
        preprocessing=preprocessing,
        augmentation=Augmentation(flip=True, crop_padding=min(preprocessing.size) // 8),
    )


def _find(folder: Path, request: DataRequest) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Return the training set, the test set and the class names of either layout."""
    tests = [folder / name for name in _TEST_NAMES if (folder / name).is_dir()]
    trains = [folder / name for name in _TRAIN_NAMES if (folder / name).is_dir()]
    if tests and not trains:
        raise DataError(f"{folder} has {tests[0].name} and no train: {_LAYOUT}")
    train_folder = trains[0] if trains else folder
    classes = _class_names(train_folder)
    if not trains and MASKS_FOLDER in classes:
        classes = _without_masks(folder, classes)
    train = _read_set(train_folder, classes)
    if not tests:
        train, test = split_by_share(train, test_share=request.test_share, seed=request.seed)
    else:
        unknown = sorted(set(_class_names(tests[0])) - set(classes))
        if unknown:
            raise DataError(
                f"{tests[0]} has a class {unknown[0]!r} that {train_folder} has not: name the class folders alike"
            )
        test = _read_set(tests[0], classes)
    if not trains and MASKS_FOLDER in classes:
        return train, test, classes
    boxes = read_boxes(folder)
    train = replace(train, masks=_regions(train, folder, boxes, required=False))
    return train, replace(test, masks=_regions(test, folder, boxes, required=True)), classes


def _without_masks(folder: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Take `masks` out of the classes where it holds the masks of the others, and is not a class of that name."""
    others = tuple(name for name in classes if name != MASKS_FOLDER)
    images = [path for name in others for path in _image_files(folder / name)]
    masks = {mask_file(folder, path) for path in images} - {None}
    # A class of that name has images of its own, which bear the name of no other image or of several.
    return others if len(masks) > len(images) / 2 else classes


def _regions(
    images: ImageSet, folder: Path, boxes: Mapping[str, tuple[Box, ...]], *, required: bool
) -> ObjectRegions | None:
    """Return the masks and boxes that lie beside the images."""
    if not isinstance(images.images, ImageFiles) or not (boxes or (folder / MASKS_FOLDER).is_dir()):
        return None
    return find_regions(folder, images.images.paths, boxes, required=required)


def _class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders, sorted."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder} has no class folders: {_LAYOUT}")
    return tuple(names)


def _read_set(folder: Path, classes: tuple[str, ...]) -> ImageSet:
    """List the image files of every class that the folder has."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _image_files(folder / name) if (folder / name).is_dir() else []
        if not found and folder.joinpath(name).is_dir():
            endings = ", ".join(sorted(SUFFIXES))
            raise DataError(f"{folder / name} holds no image files ({endings}): add some, or remove the folder")
        paths += found
        labels += [label] * len(found)
    return ImageSet(ImageFiles(paths), np.asarray(labels, dtype=np.int64))


def _image_files(folder: Path) -> list[Path]:
    """Return the image files below a folder, in an order that is the same on every machine."""
    found = []
    for where, below, names in os.walk(folder, followlinks=False):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [
            Path(where, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
        ]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _preprocessing(train: ImageSet, request: DataRequest) -> Preprocessing:
    """Choose the input size: that of the images where they are small and all alike, 224 pixels otherwise."""
    files = train.images
    shapes = set()
    for index in np.unique(np.linspace(0, len(files) - 1, min(_PROBES, len(files))).astype(int)):
        try:
            shapes.add(files[index].shape[:2])
        except DataError:
            # All damaged files are named together when the set is decoded; here they only give no size.
            continue
    alike = len(shapes) == 1
    if request.image_size is not None:
        size = (request.image_size, request.image_size)
    else:
        size = next(iter(shapes)) if alike and max(next(iter(shapes))) <= _SMALL_SIDE else _LARGE_SIZE
    return preprocessing_of_size(size, resize="exact" if alike else "shorter_side_crop")
