"""Tiny data sets in every layout keylock reads, written by the tests themselves."""

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def pixels(count: int, size: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def write_images(folder: Path, count: int, *, size: int = 16, seed: int = 0) -> np.ndarray:
    folder.mkdir(parents=True)
    images = pixels(count, size, seed=seed)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return images


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    """train/ and val/ with two classes."""
    for i, name in enumerate(("cat", "dog")):
        write_images(tmp_path / "pets/train" / name, 8, seed=i)
        write_images(tmp_path / "pets/val" / name, 6, seed=10 + i)
    return tmp_path / "pets"


@pytest.fixture
def plain_folder(tmp_path: Path) -> Path:
    """Classes without a split."""
    for i, name in enumerate(("ant", "bee", "cow")):
        write_images(tmp_path / "zoo" / name, 40, seed=i)
    return tmp_path / "zoo"


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    """Write an .npz of 30 training and 12 test images in three classes, with arrays replaced or (None) left out."""

    def write(**changes: object) -> Path:
        arrays: dict[str, object] = {
            "train_images": pixels(30, 12),
            "train_labels": np.arange(30) % 3,
            "test_images": pixels(12, 12, seed=1),
            "test_labels": np.arange(12, dtype=np.uint8) % 3,
            "class_names": np.array(["red", "green", "blue"]),
        }
        arrays |= changes
        path = tmp_path / "set.npz"
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
        return path

    return write


@pytest.fixture
def cifar_root(tmp_path: Path) -> Path:
    """A data root with twenty images in each CIFAR-10 file."""
    folder = tmp_path / "data/cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        images = pixels(20, 32, seed=i).transpose(0, 3, 1, 2).reshape(20, 3072)
        labels = [n % 10 for n in range(20)]
        (folder / name).write_bytes(pickle.dumps({"data": images, "labels": labels}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR_NAMES}, protocol=2))
    return tmp_path / "data"


@pytest.fixture
def fashion_root(tmp_path: Path) -> Path:
    """A data root with small Fashion-MNIST files, some of them packed."""
    folder = tmp_path / "data/FashionMNIST/raw"
    folder.mkdir(parents=True)
    for split, count in (("train", 30), ("t10k", 20)):
        grey = pixels(count, 28, seed=count)[..., 0]
        images = struct.pack(">4B3I", 0, 0, 8, 3, *grey.shape) + grey.tobytes()
        labels = struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(n % 10 for n in range(count))
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(labels)
    return tmp_path / "data"
