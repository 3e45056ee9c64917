"""One table over all data sources: each keeps the same contract."""

import numpy as np
import pytest

from keylock.data import DATA_SOURCES, DataSource, ImageSet, open_data
from keylock.data.sets import split_by_share, stratified_order
from keylock.errors import DataError

SOURCES = ["shapes", "cifar10", "fashion-mnist", "folder with split", "folder", "npz with split", "npz"]
CLASSES = {"shapes": 8, "cifar10": 10, "fashion-mnist": 10, "folder with split": 2}


@pytest.fixture
def opened(request):
    """Open a source by its name in the table."""

    def open_by_name(name: str, **options: object) -> DataSource:
        if name == "shapes":
            return open_data("shapes", **({"train_count": 64, "test_count": 16} | options))
        if name in ("cifar10", "fashion-mnist"):
            root = request.getfixturevalue("cifar_root" if name == "cifar10" else "fashion_root")
            return open_data(name, root=root, download=False, **options)
        if name == "folder with split":
            return open_data(request.getfixturevalue("split_folder"), **options)
        if name == "folder":
            return open_data(request.getfixturevalue("plain_folder"), **options)
        if name == "npz with split":
            return open_data(request.getfixturevalue("npz")(), **options)
        images = np.arange(200, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 12, 12, 3), np.uint8)
        arrays = dict.fromkeys(("train_images", "train_labels", "test_images", "test_labels"))
        path = request.getfixturevalue("npz")(**arrays, images=images, labels=np.arange(200) % 3)
        return open_data(path, **options)

    return open_by_name


def test_the_table_has_every_named_source():
    assert set(DATA_SOURCES) <= set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_keeps_the_contract(opened, name):
    source = opened(name)
    assert len(source.classes) == CLASSES.get(name, 3)
    assert all(isinstance(label, str) for label in source.classes)
    for images in (source.train, source.test):
        assert images.labels.dtype == np.int64
        assert 0 <= images.labels.min() <= images.labels.max() < len(source.classes)
        assert images.images[0].dtype == np.uint8
        assert images.images[0].shape[2] == 3
        pixels = images.resized(source.preprocessing)
        assert pixels.shape == (len(images), *source.preprocessing.size, 3)
        assert np.array_equal(pixels[1], source.preprocessing.resized(images.images[1]))
    assert source.summary()["train_images"] == len(source.train)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_opens_the_same_twice(opened, name):
    first, second = opened(name), opened(name, seed=0)
    assert np.array_equal(first.test.labels, second.test.labels)
    assert np.array_equal(first.test.resized(first.preprocessing), second.test.resized(second.preprocessing))


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_takes_an_image_size(opened, name):
    source = opened(name, image_size=24)
    assert source.preprocessing.size == (24, 24)
    assert source.train.resized(source.preprocessing).shape[1:] == (24, 24, 3)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_can_be_limited(opened, name):
    source = opened(name, train_count=16, test_count=10)
    assert (len(source.train), len(source.test)) == (16, 10)
    assert np.bincount(source.train.labels).max() <= 8


def test_shapes_keep_their_test_images_however_many_are_trained_on():
    few, many = (open_data("shapes", train_count=n, test_count=24) for n in (16, 80))
    assert np.array_equal(few.test.images, many.test.images)
    assert few.test.masks is not None


def test_masks_follow_the_crop_and_the_size():
    source = open_data("shapes", train_count=16, test_count=16)
    assert source.test.resized_masks(source.preprocessing) is source.test.masks
    wide = source.preprocessing.model_copy(update={"size": (16, 64), "resize": "shorter_side_crop"})
    masks = source.test.resized_masks(wide, np.array([3]))
    # Doubled in size, the middle half of the rows is kept: every pixel is one of the source, but for soft edges.
    naive = source.test.masks[3].repeat(2, axis=0).repeat(2, axis=1)[24:40]
    assert masks.shape == (1, 16, 64)
    assert (masks[0] == naive).mean() > 0.95
    assert ImageSet(source.test.images, source.test.labels).resized_masks(wide) is None


def test_another_seed_splits_otherwise(opened):
    first, second = opened("npz", seed=0), opened("npz", seed=1)
    assert not np.array_equal(first.test.images, second.test.images)


def test_a_split_loses_nothing_and_keeps_proportions():
    labels = np.array([0] * 100 + [1] * 40)
    images = np.arange(140, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 8, 8, 3), np.uint8)
    train, test = split_by_share(ImageSet(images, labels), test_share=0.2, seed=5)
    assert np.bincount(test.labels).tolist() == [20, 8]
    seen = np.concatenate([train.images[:, 0, 0, 0], test.images[:, 0, 0, 0]])
    assert np.array_equal(np.sort(seen), np.arange(140))
    assert all(labels[i] == label for i, label in zip(test.images[:, 0, 0, 0], test.labels, strict=True))


def test_stratified_order_is_a_permutation():
    order = stratified_order(np.array([2, 0, 0, 1, 2, 2]), seed=0)
    assert sorted(order.tolist()) == list(range(6))


@pytest.mark.parametrize("spec", ["mnist", "no/such/folder"])
def test_an_unknown_name_lists_what_there_is(spec):
    with pytest.raises(DataError, match=r"cifar10, fashion-mnist, shapes, an \.npz file, or a folder with train/CLASS"):
        open_data(spec)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"neither a folder nor an \.npz file"):
        open_data(tmp_path / "cat.png")


@pytest.mark.parametrize(
    "option",
    [{"seed": -1}, {"image_size": 4}, {"train_count": 0}, {"test_count": 3}, {"test_share": 0.0}, {"test_share": 1.5}],
)
def test_options_out_of_range_are_named(option):
    with pytest.raises(DataError, match=next(iter(option))):
        open_data("shapes", **option)


@pytest.mark.parametrize("name", ["CIFAR10", "FashionMNIST"])
@pytest.mark.parametrize("download", [False, True])
def test_a_data_set_that_cannot_be_downloaded_says_what_to_do(tmp_path, monkeypatch, name, download):
    # Nobody listens on port 9 (discard): every download fails at once.
    for scheme in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    spec = {"CIFAR10": "cifar10", "FashionMNIST": "fashion-mnist"}[name]
    with pytest.raises(DataError, match=rf"{name} is not in .*: put the .*files") as caught:
        open_data(spec, root=tmp_path, download=download)
    assert "\n" not in caught.value.message
    assert ("downloads are off" in caught.value.message) is not download
