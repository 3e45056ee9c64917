"""Where images come from: `open_data` turns `shapes`, `cifar10`, a folder or an `.npz` file into a `DataSource`.

A new named source is one function and one entry in `DATA_SOURCES`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from keylock.data._request import IMAGENET_MEAN, IMAGENET_STD, DataRequest, preprocessing_of_size
from keylock.data.cifar10 import open_cifar10
from keylock.data.fashion_mnist import open_fashion_mnist
from keylock.data.folder import open_folder
from keylock.data.npz import open_npz
from keylock.data.sets import MIN_TEST_IMAGES, Augmentation, DataSource, ImageSet
from keylock.data.shapes import SHAPE_CLASSES, draw_shapes
from keylock.errors import DataError
from keylock.imaging.grey_levels import check_bits

__all__ = ["DATA_SOURCES", "IMAGENET_MEAN", "IMAGENET_STD", "open_data"]

_SHAPES_TRAIN_COUNT, _SHAPES_TEST_COUNT = 6000, 1000


def open_data(
    spec: str | Path,
    *,
    root: str | Path = "data",
    seed: int = 0,
    image_size: int | None = None,
    train_count: int | None = None,
    test_count: int | None = None,
    test_share: float = 0.1,
    download: bool = True,
    bits: int | None = None,
) -> DataSource:
    """Open a data set by name or path.

    Args:
        spec: A name in `DATA_SOURCES`, the path of an image folder, or the path of an `.npz` file.
        root: Folder in which the named, downloaded data sets lie, in the layout of torchvision.
        seed: Draws `shapes`, and chooses the images of splits and limits. Not negative.
        image_size: Side of the model's input in pixels; by default what suits the images.
        train_count: Take at most so many training images, every class keeping its share (`shapes`: draw so many).
        test_count: The same for test images.
        test_share: Share of the images that become test images where the source has no split of its own.
        download: Whether a named data set that is not under `root` may be downloaded.
        bits: How many bits the values have of images with more than eight, 8 to 16; by default what the files say.

    Returns:
        The checked data source.

    Raises:
        DataError: The data set is missing, unreadable or unusable, or an option is out of range.
        InputError: The bits are out of range.
    """
    for name, value, low in (
        ("seed", seed, 0),
        ("image_size", image_size, 8),
        ("train_count", train_count, 2),
        ("test_count", test_count, MIN_TEST_IMAGES),
    ):
        if value is not None and value < low:
            raise DataError(f"{name} is {value}: it must be at least {low}")
    if not 0 < test_share < 1:
        raise DataError(f"test_share is {test_share}: it must lie between 0 and 1, for example 0.1")
    request = DataRequest(
        path=Path(spec).expanduser(),
        root=Path(root).expanduser(),
        seed=seed,
        image_size=image_size,
        train_count=train_count,
        test_count=test_count,
        test_share=test_share,
        download=download,
        bits=check_bits(bits),
    )
    source = _opener(str(spec), request.path)(request)
    return source.limited(train_count=train_count, test_count=test_count, seed=seed)


def _opener(spec: str, path: Path) -> Callable[[DataRequest], DataSource]:
    """Choose what opens a spec. Names win over paths: write ./shapes for a folder of that name."""
    if spec in DATA_SOURCES:
        return DATA_SOURCES[spec]
    if path.suffix.lower() == ".npz":
        return open_npz
    if path.is_dir():
        return open_folder
    names = ", ".join(sorted(DATA_SOURCES))
    if path.exists():
        raise DataError(f"{spec} is neither a folder nor an .npz file; give one of these, or one of {names}")
    raise DataError(
        f"there is no data set or folder {spec!r}: give one of {names}, an .npz file, "
        "or a folder with train/CLASS/*.png and test/CLASS/*.png, or with CLASS/*.png"
    )


def _open_shapes(request: DataRequest) -> DataSource:
    """Draw the shapes data set; the test images come first, so that they stay the same however many are trained on."""
    size = request.image_size or 32
    train_count = request.train_count or _SHAPES_TRAIN_COUNT
    test_count = request.test_count or _SHAPES_TEST_COUNT
    shapes = ImageSet(*draw_shapes(count=train_count + test_count, size=size, seed=request.seed))
    return DataSource(
        name="shapes",
        classes=SHAPE_CLASSES,
        train=shapes.take(np.arange(test_count, test_count + train_count)),
        test=shapes.take(np.arange(test_count)),
        preprocessing=preprocessing_of_size((size, size)),
        augmentation=Augmentation(flip=True),
    )


DATA_SOURCES: dict[str, Callable[[DataRequest], DataSource]] = {
    "shapes": _open_shapes,
    "cifar10": open_cifar10,
    "fashion-mnist": open_fashion_mnist,
}
"""Name to what opens the data set."""
