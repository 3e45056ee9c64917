"""Fashion-MNIST in its published form, IDX files (Xiao et al., arXiv 1708.07747), as torchvision stores it.

The grey images are repeated to three channels, so that every architecture and every published weight fits.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keylock.data._download import download
from keylock.data._request import DataRequest, preprocessing_of_size
from keylock.data.sets import Augmentation, DataSource, ImageSet
from keylock.errors import DataError

__all__ = ["open_fashion_mnist"]

_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def open_fashion_mnist(request: DataRequest) -> DataSource:
    """Open Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels in ten classes.

    Args:
        request: `root` holds `FashionMNIST/raw` with the IDX files, packed or not, or is where to download them to.

    Returns:
        The data source, with all images in memory.

    Raises:
        DataError: The data set is missing and cannot be downloaded, or a file is damaged.
    """
    folder = request.root / "FashionMNIST" / "raw"
    if not all(_located(folder, name) for name in _FILES):
        wanted = f"the four files {_FILES[0]}.gz, ... in {folder}"
        download("FashionMNIST", request.root, wanted=wanted, allowed=request.download)
    train, test = (_read_set(folder, split) for split in ("train", "t10k"))
    height, width = train.images[0].shape[:2]
    side = request.image_size
    return DataSource(
        name="fashion-mnist",
        classes=_CLASSES,
        train=train,
        test=test,
        preprocessing=preprocessing_of_size((side, side) if side else (height, width)),
        augmentation=Augmentation(flip=True, crop_padding=2),
    )


def _located(folder: Path, name: str) -> Path | None:
    """Return the file, unpacked or packed, or None."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_set(folder: Path, split: str) -> ImageSet:
    images = _read_idx(folder, f"{split}-images-idx3-ubyte", dimensions=3)
    labels = _read_idx(folder, f"{split}-labels-idx1-ubyte", dimensions=1)
    return ImageSet(np.repeat(images[..., None], 3, axis=3), labels.astype(np.int64))


def _read_idx(folder: Path, name: str, *, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of bytes: 0, 0, type 8, number of dimensions, every dimension as big-endian uint32, values."""
    path = _located(folder, name) or folder / name
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as exc:
        raise DataError(f"{path} cannot be read ({exc}): get the file again") from exc
    header = 4 + 4 * dimensions
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) < header:
        raise DataError(f"{path} is no IDX file of {dimensions} dimensions: get the file again")
    shape = tuple(int(n) for n in np.frombuffer(data[4:header], dtype=">u4"))
    if int(np.prod(shape, dtype=np.uint64)) != len(data) - header or 0 in shape:
        raise DataError(f"{path} holds {len(data) - header} values and its header says {shape}: get the file again")
    return np.frombuffer(data[header:], dtype=np.uint8).reshape(shape)
