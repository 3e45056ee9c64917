"""Folders of image files, one folder for each class: the layout torchvision's ImageFolder reads.

Two layouts are known: `train/CLASS/*.png` with `test/CLASS/*.png` (or another usual name, `keylock.data.splits`), and
`CLASS/*.png` alone, of which a seeded share becomes the test set. Files are found at any depth below their class.
Beside them may lie `masks/` and `boxes.csv`, which say where the objects are.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keylock.data._request import DataRequest, preprocessing_of_size
from keylock.data.bit_depths import bits_of_files
from keylock.data.files import SUFFIXES, ImageFiles
from keylock.data.layout import Listing, class_folders, describe_files, find_layout, list_images
from keylock.data.regions import MASKS_FOLDER, Box, ObjectRegions, find_regions, mask_file, read_boxes
from keylock.data.sets import Augmentation, DataSource, ImageSet, split_by_share
from keylock.errors import DataError
from keylock.imaging.preprocessing import Preprocessing

__all__ = ["open_folder"]

_SMALL_SIDE = 128
_LARGE_SIZE = (224, 224)
_PROBES = 32


class _Found(NamedTuple):
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    bits: int | None
    notes: tuple[str, ...]


def open_folder(request: DataRequest) -> DataSource:
    """Open an image folder.

    Args:
        request: `path` is the folder.

    Returns:
        The data source; its files are listed, and decoded when they are first needed.

    Raises:
        DataError: The folder has another layout, an unknown split, a class without images, or masks or boxes for some
            test images only.
    """
    folder = request.path
    try:
        found = _find(folder, request)
    except OSError as exc:
        raise DataError(f"the folder {exc.filename} cannot be read ({exc.strerror}): check its permissions") from exc
    preprocessing = _preprocessing(found, request)
    return DataSource(
        name=folder.resolve().name,
        classes=found.classes,
        train=found.train,
        test=found.test,
        preprocessing=preprocessing,
        augmentation=Augmentation(flip=True, crop_padding=min(preprocessing.size) // 8),
        notes=found.notes,
    )


def _find(folder: Path, request: DataRequest) -> _Found:
    """Return the images and the class names of either layout."""
    layout = find_layout(folder)
    classes = class_folders(layout.train)
    if layout.train == folder and MASKS_FOLDER in classes:
        classes = _without_masks(folder, classes)
    notes = list(layout.notes)
    train = _read_set(layout.train, classes, notes)
    if layout.test is None:
        train, test = split_by_share(train, test_share=request.test_share, seed=request.seed)
    else:
        below = class_folders(layout.test)
        unknown = sorted(below.keys() - classes.keys())
        if unknown:
            raise DataError(
                f"{layout.test} has a class {unknown[0]!r} that {layout.train} has not: name the class folders alike"
            )
        test = _read_set(layout.test, {name: below.get(name) for name in classes}, notes)
        missing = sorted(classes.keys() - below.keys())
        if missing:
            notes.append(f"{layout.test.name} has no images of {len(missing)} classes, the first is {missing[0]!r}")
    bits = _agree(folder, train, test, request, notes)
    train, test = _with_bits(train, bits), _with_bits(test, bits)
    names = tuple(classes)
    if layout.train == folder and MASKS_FOLDER in classes:
        return _Found(train, test, names, bits, tuple(notes))
    boxes = read_boxes(folder)
    train = replace(train, masks=_regions(train, folder, boxes, required=False))
    test = replace(test, masks=_regions(test, folder, boxes, required=True))
    return _Found(train, test, names, bits, tuple(notes))


def _agree(folder: Path, train: ImageSet, test: ImageSet, request: DataRequest, notes: list[str]) -> int | None:
    """Return the one scale of the images with more than eight bits, where there are some, and note it."""
    name = folder.resolve().name
    sets = [images.images for images in (train, test) if isinstance(images.images, ImageFiles)]
    bits, count = bits_of_files(sets, request.bits, name=name)
    if bits is not None:
        notes.append(f"{count} images of {name} have more than 8 bits and are scaled as values of {bits} bits")
    return bits


def _with_bits(images: ImageSet, bits: int | None) -> ImageSet:
    if bits is None or not isinstance(images.images, ImageFiles):
        return images
    return replace(images, images=ImageFiles(images.images.paths, bits=bits))


def _without_masks(folder: Path, classes: dict[str, Path]) -> dict[str, Path]:
    """Take `masks` out of the classes where it holds the masks of the others, and is not a class of that name."""
    others = {name: path for name, path in classes.items() if name != MASKS_FOLDER}
    images = [path for below in others.values() for path in list_images(below).images]
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


def _read_set(folder: Path, classes: Mapping[str, Path | None], notes: list[str]) -> ImageSet:
    """List the image files of every class that the folder has, and note what is left out."""
    paths: list[Path] = []
    labels: list[int] = []
    left_out: list[Path] = []
    for label, below in enumerate(classes.values()):
        found = Listing((), ()) if below is None else list_images(below)
        if below is not None and not found.images:
            others = f"; it holds {describe_files(found.others, below=below)}" if found.others else ""
            endings = ", ".join(sorted(SUFFIXES))
            raise DataError(f"{below} holds no image files ({endings}){others}: add some, or remove the folder")
        paths += found.images
        labels += [label] * len(found.images)
        left_out += found.others
    if left_out:
        notes.append(
            f"left out of {folder.resolve().name}, not being image files: {describe_files(left_out, below=folder)}"
        )
    return ImageSet(ImageFiles(paths), np.asarray(labels, dtype=np.int64))


def _preprocessing(found: _Found, request: DataRequest) -> Preprocessing:
    """Choose the input size: that of the images where they are small and all alike, 224 pixels otherwise."""
    files = found.train.images
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
    return preprocessing_of_size(size, resize="exact" if alike else "shorter_side_crop", bits=found.bits)
