"""CIFAR-10 and Fashion-MNIST in their published file formats."""

import gzip
import pickle
import struct

import numpy as np
import pytest

from keylock.data import open_data
from keylock.errors import DataError


def test_cifar10_has_its_pixels_in_order(cifar_root):
    source = open_data("cifar10", root=cifar_root)
    assert (len(source.train), len(source.test)) == (100, 20)
    assert source.classes[3] == "cat"
    expected = np.random.default_rng(5).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    assert np.array_equal(source.test.images, expected)


def python2_batch(image: bytes) -> bytes:
    """Spell out a CIFAR-10 file of one image the way Python 2 pickled it: byte strings, and integers for booleans."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", 3072) + image + b"tb"
    )
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x07eu."


def test_cifar10_files_of_python_2_are_read(cifar_root):
    image = np.random.default_rng(9).integers(0, 256, 3072, dtype=np.uint8)
    (cifar_root / "cifar-10-batches-py/data_batch_2").write_bytes(python2_batch(image.tobytes()))
    source = open_data("cifar10", root=cifar_root)
    assert len(source.train) == 81
    assert source.train.labels[20] == 7
    assert np.array_equal(source.train.images[20], image.reshape(3, 32, 32).transpose(1, 2, 0))


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        pickle.dumps(["data"]),
        pickle.dumps({"data": np.zeros((1, 3072)), "labels": [0]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}),
        pickle.dumps({"data": Evil(), "labels": [0]}),
    ],
)
def test_a_damaged_or_hostile_cifar10_file_is_named_and_runs_nothing(cifar_root, content, capsys):
    (cifar_root / "cifar-10-batches-py/data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match="data_batch_3 is damaged or no CIFAR-10 file"):
        open_data("cifar10", root=cifar_root)
    assert "executed" not in capsys.readouterr().out


def test_a_missing_cifar10_file_is_named(cifar_root):
    (cifar_root / "cifar-10-batches-py/test_batch").unlink()
    with pytest.raises(DataError, match=r"test_batch cannot be read \(No such file"):
        open_data("cifar10", root=cifar_root)


def test_fashion_mnist_has_its_pixels_in_all_channels(fashion_root):
    source = open_data("fashion-mnist", root=fashion_root)
    assert (len(source.train), len(source.test)) == (30, 20)
    expected = np.random.default_rng(20).integers(0, 256, (20, 28, 28, 3), dtype=np.uint8)[..., :1]
    assert np.array_equal(source.test.images, np.repeat(expected, 3, axis=3))
    assert source.test.labels.tolist() == [n % 10 for n in range(20)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-labels-idx1-ubyte", b"", "is no IDX file of 1 dimensions"),
        ("train-labels-idx1-ubyte", struct.pack(">4BI", 0, 0, 8, 1, 31) + bytes(30), "holds 30 values and its header"),
        ("train-labels-idx1-ubyte", struct.pack(">4BI", 0, 0, 8, 1, 29) + bytes(29), "must be equally many"),
        ("t10k-images-idx3-ubyte.gz", b"not packed", r"t10k-images-idx3-ubyte\.gz cannot be read"),
        (
            "t10k-images-idx3-ubyte.gz",
            gzip.compress(bytes(99), mtime=0)[:-9],
            r"t10k-images-idx3-ubyte\.gz cannot be read",
        ),
    ],
)
def test_a_damaged_fashion_mnist_file_is_named(fashion_root, name, content, message):
    (fashion_root / "FashionMNIST/raw" / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_data("fashion-mnist", root=fashion_root)
