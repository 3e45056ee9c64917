"""Where the object is on each image of a folder: mask files in `masks/`, or boxes in `boxes.csv`."""

import csv
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keylock.data.files import decode_file, load_rows
from keylock.errors import DataError, ImageError
from keylock.imaging.preprocessing import Preprocessing

__all__ = [
    "MASKS_FOLDER",
    "_BOXES_FILE",
    "Box",
    "ObjectRegions",
    "find_regions",
    "mask_file",
    "read_boxes",
    "resize_mask",
]

MASKS_FOLDER = "masks"
_BOXES_FILE = "boxes.csv"
_COLUMNS = ("file", "x0", "y0", "x1", "y1")

Box = tuple[int, int, int, int]
"""Left, top, right and bottom pixel of an object; all four are inside it."""


class ObjectRegions:
    """The object on each image, as files and boxes that become masks when they are asked for.

    Attributes:
        images: The image files.
        regions: For each a mask file, of which every pixel that is not black is the object, or boxes, of which the
            object is what any of them holds.
    """

    def __init__(self, images: Sequence[Path], regions: Sequence[Path | tuple[Box, ...]]) -> None:
        self.images, self.regions = tuple(images), tuple(regions)

    def __len__(self) -> int:
        return len(self.regions)

    def take(self, indices: NDArray[np.intp]) -> "ObjectRegions":
        """Return some of them, in the order given."""
        return ObjectRegions([self.images[i] for i in indices], [self.regions[i] for i in indices])

    def resized(self, preprocessing: Preprocessing, indices: NDArray[np.intp] | None = None) -> NDArray[np.bool_]:
        """Read the masks and bring them to the size of a model, with the scaling and the crop that the images get.

        Args:
            preprocessing: Gives the size and how to get there.
            indices: Which masks (n,); all of them by default.

        Returns:
            Masks (n, H, W), True where the object is.

        Raises:
            DataError: Files cannot be read, or a region lies outside its image.
        """
        chosen = self if indices is None else self.take(indices)
        masks = np.empty((len(chosen), *preprocessing.size), dtype=bool)

        def load(row: int) -> None:
            masks[row] = resize_mask(_mask(chosen.images[row], chosen.regions[row]), preprocessing)

        load_rows(chosen.images, load, kind="image or mask files")
        return masks


def find_regions(
    folder: Path, images: Sequence[Path], boxes: Mapping[str, tuple[Box, ...]], *, required: bool
) -> ObjectRegions | None:
    """Find the region of every image of a set.

    Args:
        folder: What holds `masks/`, and what the boxes' file names start from.
        images: The image files, below the folder.
        boxes: What `read_boxes` returned.
        required: Refuse a set in which only some images have a region; otherwise such a set has none.

    Returns:
        The regions, or None where the set has none.

    Raises:
        DataError: Only some images have a region, or two images would share a mask file.
    """
    regions = [_find(folder, image, boxes) for image in images]
    missing = [image for image, region in zip(images, regions, strict=True) if region is None]
    if missing:
        if required and len(missing) < len(images):
            raise DataError(
                f"{len(missing)} of {len(images)} test images have neither a mask in {folder / MASKS_FOLDER} nor a box "
                f"in {_BOXES_FILE}, the first is {missing[0].relative_to(folder)}: add them, or remove all"
            )
        return None
    shared = [path for path, count in Counter(r for r in regions if isinstance(r, Path)).items() if count > 1]
    if shared:
        raise DataError(
            f"{shared[0]} would be the mask of several images: put masks into folders as the images are, "
            f"{MASKS_FOLDER}/SPLIT/CLASS/NAME.png"
        )
    return ObjectRegions(images, [region for region in regions if region is not None])


def read_boxes(folder: Path) -> dict[str, tuple[Box, ...]]:
    """Read the boxes of a folder, by the path of the image below it; empty where there is no such file.

    Raises:
        DataError: The file cannot be read, lacks a column, or a row is not a box; the message names the line.
    """
    path = folder / _BOXES_FILE
    if not path.is_file():
        return {}
    boxes: defaultdict[str, tuple[Box, ...]] = defaultdict(tuple)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if not set(_COLUMNS) <= set(rows.fieldnames or ()):
                raise DataError(f"{path} must start with the line {','.join(_COLUMNS)}")
            for row in rows:
                boxes[str(row["file"])] += (_parse_box(path, rows.line_num, row),)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}): write it as CSV in UTF-8") from error
    return dict(boxes)


def mask_file(folder: Path, image: Path) -> Path | None:
    """Return the mask file of an image below a folder, where there is one: at the same place, or by its name alone."""
    masks = folder / MASKS_FOLDER
    for candidate in ((masks / image.relative_to(folder)).with_suffix(".png"), masks / f"{image.stem}.png"):
        if candidate.is_file():
            return candidate
    return None


def resize_mask(mask: NDArray[np.bool_], preprocessing: Preprocessing) -> NDArray[np.bool_]:
    """Bring a mask (height, width) to the size of a model, with the scaling and the crop that its image gets."""
    resized: NDArray[np.bool_] = preprocessing.resized(np.where(mask, 255, 0).astype(np.uint8))[:, :, 0] >= 128
    return resized


def _parse_box(path: Path, line: int, row: Mapping[str, str | None]) -> Box:
    try:
        x0, y0, x1, y1 = (int(row[name] or "") for name in _COLUMNS[1:])
    except ValueError:
        raise DataError(f"{path}, line {line}: x0, y0, x1 and y1 must be whole pixels") from None
    if not (0 <= x0 <= x1 and 0 <= y0 <= y1):
        raise DataError(
            f"{path}, line {line}: ({x0}, {y0}) to ({x1}, {y1}) is not a box: give left, top, right, bottom"
        )
    return x0, y0, x1, y1


def _find(folder: Path, image: Path, boxes: Mapping[str, tuple[Box, ...]]) -> Path | tuple[Box, ...] | None:
    """Return the mask file of an image, or else its boxes."""
    return mask_file(folder, image) or boxes.get(image.relative_to(folder).as_posix())


def _mask(image: Path, region: Path | tuple[Box, ...]) -> NDArray[np.bool_]:
    """Return the mask (height, width) of an image in the image's own size."""
    shape = decode_file(image).shape[:2]
    if isinstance(region, Path):
        mask: NDArray[np.bool_] = (decode_file(region) > 0).max(axis=2)
        if mask.shape != shape:
            raise ImageError(f"the mask {region.name} has another size than its image: save both alike")
        return mask
    mask = np.zeros(shape, dtype=bool)
    for x0, y0, x1, y1 in region:
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
    if not mask.any():
        raise ImageError(f"its boxes in {_BOXES_FILE} lie outside: give pixels of the image file")
    return mask
