"""CIFAR-10 in its published form, `cifar-10-batches-py` (Krizhevsky, 2009), as torchvision stores it.

The files are pickles. They are read with an unpickler that knows plain NumPy arrays and nothing else, so a file that
was swapped for another can spoil the data, but cannot run code.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from keylock.data._download import download
from keylock.data._request import DataRequest, preprocessing_of_size
from keylock.data.sets import Augmentation, DataSource, ImageSet
from keylock.errors import DataError

__all__ = ["open_cifar10"]

_FOLDER = "cifar-10-batches-py"
_TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEST_FILES = ("test_batch",)


def open_cifar10(request: DataRequest) -> DataSource:
    """Open CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels in ten classes.

    Args:
        request: `root` holds `cifar-10-batches-py`, or is where to download it to.

    Returns:
        The data source, with all images in memory.

    Raises:
        DataError: The data set is missing and cannot be downloaded, or a file is damaged.
    """
    folder = request.root / _FOLDER
    if not (folder / "batches.meta").is_file():
        download(
            "CIFAR10", request.root, wanted=f"the files of cifar-10-python.tar.gz in {folder}", allowed=request.download
        )
    side = request.image_size or 32
    return DataSource(
        name="cifar10",
        classes=_class_names(folder / "batches.meta"),
        train=_read_files(folder, _TRAIN_FILES),
        test=_read_files(folder, _TEST_FILES),
        preprocessing=preprocessing_of_size((side, side)),
        augmentation=Augmentation(flip=True, crop_padding=4),
    )


def _class_names(path: Path) -> tuple[str, ...]:
    names = _unpickle(path).get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged(path)
    return tuple(names)


def _read_files(folder: Path, names: tuple[str, ...]) -> ImageSet:
    images, labels = [], []
    for name in names:
        batch = _unpickle(folder / name)
        data, targets = batch.get("data"), batch.get("labels")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
            raise _damaged(folder / name)
        if not isinstance(targets, list) or len(targets) != len(data) or not all(isinstance(t, int) for t in targets):
            raise _damaged(folder / name)
        images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(np.asarray(targets, dtype=np.int64))
    return ImageSet(np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels))


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        # The published files were written by Python 2; latin1 is how NumPy wants its bytes from there.
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except OSError as exc:
        raise DataError(f"{path} cannot be read ({exc.strerror}): unpack cifar-10-python.tar.gz again") from exc
    except Exception as exc:  # An unpickler raises nearly anything on damaged input.
        raise _damaged(path) from exc
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> DataError:
    return DataError(f"{path} is damaged or no CIFAR-10 file: unpack cifar-10-python.tar.gz again")


def _dtype(spec: str, align: int = 0, copy: int = 0) -> np.dtype[Any]:
    """Make a dtype; Python 2 wrote numbers for the two booleans, which NumPy is about to refuse."""
    return np.dtype(spec, align=bool(align), copy=bool(copy))


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the four names that plain NumPy arrays need."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - the signature of the base class
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _dtype
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}:
            # The function itself, from where NumPy hands it out publicly; its module is private and has moved.
            return np.empty(0).__reduce__()[0]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
