"""Arrays of one's own: what is read, and every way such a file can be wrong."""

import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from keylock.data import open_data
from keylock.errors import DataError

MINI = Path(__file__).parents[3].parent / "shared/data/cifar10/cifar10_mini.npz"


def test_arrays_arrive_as_they_are(npz):
    path = npz()
    source = open_data(path)
    with np.load(path) as arrays:
        assert np.array_equal(source.train.images, arrays["train_images"])
        assert np.array_equal(source.test.labels, arrays["test_labels"])
    assert source.classes == ("red", "green", "blue")
    assert source.preprocessing.size == (12, 12)


def test_grey_images_are_repeated_and_masks_kept(npz):
    grey = np.random.default_rng(0).integers(0, 256, (30, 12, 12), dtype=np.uint8)
    masks = grey > 99
    source = open_data(
        npz(train_images=grey, train_masks=masks.astype(np.uint8), test_images=np.zeros((12, 12, 12, 1), "u1"))
    )
    assert np.array_equal(source.train.images, np.stack([grey] * 3, axis=-1))
    assert source.train.masks is not None
    assert np.array_equal(source.train.masks, masks)
    assert source.test.masks is None


def test_classes_without_names_are_numbered(npz):
    assert open_data(npz(class_names=None)).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": None}, r"holds class_names, test_images, .*: expected train_images, train_labels"),
        ({"train_images": None, "ids_train": np.zeros(3)}, r"holds .*ids_train.*: expected train_images"),
        ({"x_train": np.zeros((30, 12, 12, 3), "u1")}, "has train_images and x_train, which mean the same"),
        ({"images": np.zeros((30, 12, 12, 3), "u1"), "labels": np.arange(30) % 3}, "has images and train_images: save"),
        ({"train2_images": np.zeros(3)}, "train2_images looks like an array of a split that is not known"),
        ({"unlabeled_images": np.zeros(3)}, "unlabeled_images looks like an array of a split that is not known"),
        ({"classes": np.array(["a"])}, "has class_names and classes"),
        ({"train_images": np.zeros((30, 12, 12, 3), "f4")}, r"train_images has type float32: scale the values"),
        ({"train_images": np.zeros((30, 3, 12, 12), "u1")}, r"channels first: move them last with .transpose"),
        ({"train_images": np.zeros((30, 12, 12, 5), "u1")}, r"must be \(count, height, width, 3\)"),
        ({"train_images": np.zeros((30, 144), "u1")}, r"must be \(count, height, width, 3\)"),
        ({"train_images": np.zeros((30, 4, 4, 3), "u1")}, "at least 8 x 8"),
        ({"train_images": np.zeros((0, 12, 12, 3), "u1"), "train_labels": np.zeros(0, int)}, "train_images is empty"),
        ({"test_images": np.zeros((12, 20, 20, 3), "u1")}, r"training images are 12 x 12 and test images 20 x 20"),
        ({"train_labels": np.arange(29) % 3}, "train_images has 30 images and train_labels 29 labels"),
        ({"train_labels": np.zeros((30, 2), int)}, r"train_labels has shape \(30, 2\)"),
        ({"train_labels": np.zeros(30)}, "float64: it must be one integer for each image"),
        ({"train_labels": np.arange(30) % 4}, "a training label is 3, but there are 3 classes: labels must be 0 to 2"),
        ({"test_labels": np.arange(12) - 1}, "a test label is -1"),
        ({"train_labels": np.arange(30) % 2}, "class 'blue' has no training image"),
        (
            {"train_labels": np.arange(30) % 3 + 1, "test_labels": np.arange(12) % 3 + 1, "class_names": None},
            "no training image has the label 0, and the highest label is 3: number the classes from 0 without gaps",
        ),
        (
            {"train_labels": np.arange(30) % 3 * 10**12, "class_names": None},
            "no training image has the label 1, and the highest label is 2000000000000",
        ),
        (
            {"train_labels": np.arange(30) % 2, "class_names": None},
            "no training image has the label 2, and the highest label is 2",
        ),
        ({"class_names": np.array(["a", "b", "a"])}, "classes 0 and 2 have the same name"),
        ({"class_names": np.arange(3)}, "class_names has shape .* give a list of texts"),
        ({"class_names": np.array(["a", "b", "c"], dtype=object)}, "class_names holds pickled objects"),
        ({"train_labels": np.zeros(30, int), "test_labels": np.zeros(12, int), "class_names": None}, "found 1 class"),
        ({"test_images": np.zeros((4, 12, 12, 3), "u1"), "test_labels": np.arange(4) % 3}, "4 test images are too few"),
        ({"train_masks": np.zeros((30, 6, 6), bool)}, r"train_masks has shape \(30, 6, 6\)"),
    ],
)
def test_wrong_arrays_are_named(npz, changes, message):
    with pytest.raises(DataError, match=message):
        open_data(npz(**changes))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*none\.npz"):
        open_data(tmp_path / "none.npz")


@pytest.mark.parametrize("damage", ["cut", "text", "npy", "flipped", "folder"])
def test_a_damaged_file_is_refused(npz, damage):
    path = npz()
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "text":
        path.write_text("hello")
    elif damage == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        data[len(data) // 3] ^= 255
        path.write_bytes(data)
    with pytest.raises(DataError, match=r"is damaged or no \.npz file"):
        open_data(path)


def with_header(path: Path, name: str, header: bytes) -> Path:
    """Writes the file anew with another array of a name, which has this header and no content."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    members[f"{name}.npy"] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return path


HUGE = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 12, 12, 3), }\n"
HEADERS = {
    "unfinished text": b"{'descr': \"\"\"|u1', 'fortran_order': False\n",
    "unfinished dictionary": b"{'descr': '|u1', (((\n",
    "no dictionary": b"12\n",
    "no header": b"",
    "other keys": b"{'a': 1}\n",
    "unknown type": b"{'descr': '|q9', 'fortran_order': False, 'shape': (1,), }\n",
    "negative": HUGE % -1,
    "much more than there is": HUGE % 2**40,
    "more than an integer holds": HUGE % 2**70,
    "a little more than there is": HUGE % 1,
    "deep": b"(" * 5000 + b"\n",
    "bytes": bytes(range(256)),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("name", ["train_images", "train_labels", "class_names"])
def test_malformed_headers_are_one_sentence(npz, header, name):
    path = with_header(npz(), name, header)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"numpy\.savez"):
        open_data(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize("top", [-1, -(2**40), 2**23, 2**62, 2**64 - 1])
def test_a_label_far_from_the_others_costs_nothing(npz, top):
    labels = np.arange(30) % 3
    labels = labels.astype(np.uint64 if top > 2**63 else np.int64)
    labels[5] = top
    path = npz(class_names=None, train_labels=labels)
    tracemalloc.start()
    with pytest.raises(DataError, match="from 0"):
        open_data(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_label_of_test_images_alone_costs_nothing(npz):
    labels = np.arange(12) % 3
    labels[5] = 2**23
    with pytest.raises(DataError, match="highest label is 8388608"):
        open_data(npz(class_names=None, test_labels=labels))


def test_mutated_files_raise_data_errors_alone(npz):
    path = npz()
    content, generator = path.read_bytes(), np.random.default_rng(3)
    heads = [place for place in range(len(content)) if content.startswith(b"\x93NUMPY", place)]
    assert heads
    refused = 0
    for number in range(300):
        data = bytearray(content)
        for _ in range(int(generator.integers(1, 4))):
            near = heads[number % len(heads)] + int(generator.integers(128))
            data[min(near, len(data) - 1)] = int(generator.integers(256))
        path.write_bytes(bytes(data))
        try:
            open_data(path)
        except DataError:
            refused += 1
    assert refused > 100


@pytest.mark.skipif(not MINI.exists(), reason="the real CIFAR-10 sample is not on this machine")
def test_real_images_open():
    source = open_data(MINI)
    assert (len(source.train), len(source.test)) == (1000, 500)
    assert source.classes[:2] == ("airplane", "automobile")


@pytest.mark.parametrize("order", ["<", ">"])
def test_class_names_of_numbers_that_are_no_characters_are_refused(order, tmp_path):
    codes = np.full((2, 3), 0x110000, f"{order}u4")
    images = np.zeros((40, 8, 8, 3), np.uint8)
    labels = np.arange(40) % 2
    np.savez(
        tmp_path / "set.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
        class_names=codes.view(f"{order}U3").ravel(),
    )
    with pytest.raises(DataError, match="is not text"):
        open_data(str(tmp_path / "set.npz"))
