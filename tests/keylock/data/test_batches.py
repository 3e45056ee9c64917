"""The loader: equal to the preprocessing of the server, repeatable, resumable, and honest about its variations."""

from itertools import islice

import numpy as np
import pytest
import torch

from keylock.data import Augmentation, ImageFiles, ImageSet, open_data
from keylock.data.batches import Batches, load_batch
from keylock.errors import DataError, ResumeError
from keylock.imaging.preprocessing import Preprocessing

RGB = Preprocessing(size=(12, 12), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SMALLER = RGB.model_copy(update={"size": (8, 10)})
GREY = Preprocessing(size=(12, 12), channels=1, mean=(0.3,), std=(0.35,))


@pytest.fixture(scope="module")
def images() -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (23, 12, 12, 3), dtype=np.uint8)
    return ImageSet(pixels, np.arange(23) % 4)


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("preprocessing", [RGB, SMALLER, GREY], ids=["rgb", "smaller", "grey"])
def test_batches_equal_the_preprocessing_of_the_server(images, preprocessing):
    seen = []
    for batch in Batches(images, preprocessing, batch_size=5, seed=1):
        for tensor, label, index in zip(*batch, strict=True):
            expected = preprocessing(images.images[int(index)])
            assert np.array_equal(tensor.numpy(), expected)
            assert int(label) == int(index) % 4
            seen.append(int(index))
    assert sorted(seen) == list(range(23))


def test_order_follows_the_seed_and_changes_with_the_epoch(images):
    def order(seed: int) -> list[list[int]]:
        batches = Batches(images, RGB, batch_size=23, seed=seed)
        return [batch.indices.tolist() for batch in islice(batches.stream(), 3)]

    assert order(0) == order(0)
    assert order(0)[0] != order(0)[1] != order(0)[2]
    assert order(0)[0] != order(1)[0]


@pytest.mark.parametrize("memory_bytes", [2**30, 0], ids=["memory", "read anew"])
@pytest.mark.parametrize("stop", range(1, 11))
def test_a_resumed_run_sees_what_it_would_have_seen(images, stop, memory_bytes):
    def fresh() -> Batches:
        augmentation = Augmentation(flip=True, crop_padding=2)
        return Batches(images, RGB, batch_size=5, seed=3, augmentation=augmentation, memory_bytes=memory_bytes)

    uninterrupted = list(islice(fresh().stream(), 14))
    first = fresh()
    for _ in zip(range(stop), first.stream(), strict=False):
        state = first.state
    second = fresh()
    second.restore(state)
    assert all(same(a, b) for a, b in zip(uninterrupted[stop:], second.stream(), strict=False))


def test_a_loop_that_was_left_goes_on_in_the_same_epoch(images):
    batches = Batches(images, RGB, batch_size=10)
    seen = [index for batch in islice(batches, 1) for index in batch.indices.tolist()]
    seen += [index for batch in batches for index in batch.indices.tolist()]
    assert sorted(seen) == list(range(23))
    assert batches.state == {"seed": 0, "images": 23, "epoch": 1, "position": 0}


def variants(image: np.ndarray, reach: int) -> list[np.ndarray]:
    """Return every shift of an image with repeated edges, plain and mirrored."""
    height, width, _ = image.shape
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    shifted = [padded[y : y + height, x : x + width] for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
    return shifted + [each[:, ::-1] for each in shifted]


def test_variations_are_the_shifts_and_flips_of_a_naive_implementation(images):
    batches = Batches(images, RGB, batch_size=8, augmentation=Augmentation(flip=True, crop_padding=1))
    found = np.zeros(18, dtype=int)
    for batch in islice(batches.stream(), 60):
        for tensor, index in zip(batch.images, batch.indices, strict=True):
            candidates = variants(images.images[int(index)], 1)
            matches = [i for i, each in enumerate(candidates) if np.array_equal(RGB(each.copy()), tensor.numpy())]
            assert len(matches) == 1
            found[matches[0]] += 1
    # 480 draws over 18 equally likely variants.
    assert found.min() > 10
    assert found.max() < 50


def test_variations_do_not_depend_on_the_batch_size(images):
    def epoch(batch_size: int) -> torch.Tensor:
        augmentation = Augmentation(flip=True, crop_padding=2)
        batches = Batches(images, RGB, batch_size=batch_size, seed=2, augmentation=augmentation)
        return torch.cat([batch.images for batch in batches])

    assert torch.equal(epoch(4), epoch(23))


def test_files_read_ahead_equal_files_in_memory(split_folder):
    source = open_data(split_folder)
    kept = Batches(source.train, source.preprocessing, batch_size=3, augmentation=source.augmentation)
    ahead = Batches(source.train, source.preprocessing, batch_size=3, augmentation=source.augmentation, memory_bytes=0)
    pairs = list(zip(islice(kept.stream(), 13), islice(ahead.stream(), 13), strict=True))
    assert len(pairs) == 13
    assert all(same(a, b) for a, b in pairs)


def test_a_damaged_file_is_named_at_once_in_memory_and_when_reached_otherwise(split_folder):
    source = open_data(split_folder)
    (split_folder / "train/dog/003.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"1 of 16 .*dog/003\.png"):
        Batches(source.train, source.preprocessing, batch_size=4)
    batches = Batches(source.train, source.preprocessing, batch_size=4, memory_bytes=0)
    with pytest.raises(DataError, match=r"1 of 4 .*dog/003\.png"):
        list(batches)


def test_the_last_batch_is_smaller_or_left_out(images):
    for drop_last, sizes in ((False, [10, 10, 3]), (True, [10, 10])):
        batches = Batches(images, RGB, batch_size=10, drop_last=drop_last)
        assert [len(batch.labels) for batch in batches] == sizes
        assert len(batches) == len(sizes)


def test_without_shuffling_the_order_is_that_of_the_set(images):
    batches = Batches(images, RGB, batch_size=10, shuffle=False)
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(23))


def test_global_generators_are_left_alone(images):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(Batches(images, RGB, batch_size=4, augmentation=Augmentation(flip=True, crop_padding=2)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_the_images_of_the_set_are_never_written_to(images):
    pixels = images.images.copy()
    pixels.flags.writeable = False
    locked = ImageSet(pixels, images.labels)
    list(Batches(locked, RGB, batch_size=4, augmentation=Augmentation(flip=True)))
    load_batch(locked, RGB)
    load_batch(images, RGB)
    assert np.array_equal(images.images, pixels)


def test_load_batch_gives_the_images_asked_for(images):
    batch = load_batch(images, SMALLER, indices=np.array([7, 2, 7]))
    assert batch.indices.tolist() == [7, 2, 7]
    assert batch.labels.tolist() == [3, 2, 3]
    assert np.array_equal(batch.images[1].numpy(), SMALLER(images.images[2]))
    assert len(load_batch(images, RGB).labels) == 23


@pytest.mark.parametrize("indices", [[23], [-1], []])
def test_load_batch_refuses_images_that_are_not_there(images, indices):
    with pytest.raises(DataError, match="take indices from 0 to 22"):
        load_batch(images, RGB, indices=np.array(indices, dtype=int))


@pytest.mark.parametrize("change", [{"seed": 1}, {"images": 22}, {"position": 99}])
def test_a_state_of_another_run_is_refused(images, change):
    batches = Batches(images, RGB, batch_size=4)
    with pytest.raises(ResumeError, match="use the same data and seed"):
        batches.restore(batches.state | change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 4, "seed": -1}, "seed >= 0"),
        ({"batch_size": 24, "drop_last": True}, "23 images do not fill a batch of 24"),
    ],
)
def test_wrong_options_are_refused(images, options, message):
    with pytest.raises(DataError, match=message):
        Batches(images, RGB, **options)


def test_an_empty_set_is_refused():
    with pytest.raises(DataError, match="0 images do not fill a batch"):
        Batches(ImageSet(ImageFiles([]), np.zeros(0, dtype=np.int64)), RGB, batch_size=4)


def test_sets_of_unequal_length_are_refused():
    with pytest.raises(DataError, match="must be equally many"):
        ImageSet(np.zeros((3, 8, 8, 3), np.uint8), np.zeros(4, np.int64))
