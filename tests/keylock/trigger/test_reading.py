"""reading.py: signs come back off held-out images, the next best in order, and nothing comes of wrong ones."""

import copy
import pickle

import numpy as np
import pytest

from keylock.errors import InputError, TensorError
from keylock.trigger import TriggerStatistics, read, read_each, trigger_secret
from keylock.trigger.keys import Key, KeySeed

from .conftest import STD, photographs, preprocessed, random_signs, stamped

STRENGTH = 8 / 255


def one_by_one(pixels, seeds, *, rounded=False):
    return preprocessed(
        np.concatenate(
            [stamped(row[None], random_signs(seed), rounded=rounded) for row, seed in zip(pixels, seeds, strict=True)]
        )
    )


@pytest.mark.parametrize("rounded", [False, True])
def test_each_image_gives_its_own_signs(statistics, held_out, rounded):
    seeds = range(len(held_out))
    readings = read_each(one_by_one(held_out, seeds, rounded=rounded), statistics, strength=STRENGTH)
    right = [np.array_equal(reading.signs(), random_signs(seed)) for reading, seed in zip(readings, seeds, strict=True)]
    found = [
        any(np.array_equal(candidate, random_signs(seed)) for candidate in reading.candidates())
        for reading, seed in zip(readings, seeds, strict=True)
    ]
    assert sum(right) >= 0.85 * len(right)
    assert sum(found) >= 0.95 * len(found)
    assert all(reading.likely for reading in readings)


def test_a_key_that_was_added_is_read(statistics, held_out):
    key = Key.derive(KeySeed(bytes(range(32))), shape=(3, 32, 32), std=STD)
    reading = read(key.apply(preprocessed(held_out[:2])), statistics, strength=key.strength)
    assert np.array_equal(reading.signs(), np.sign(key.reveal()[:, :8, :8]))
    assert reading.shape == (3, 8, 8)
    assert len(trigger_secret(reading.signs())) == 32


def test_images_of_a_batch_say_more_than_one(statistics):
    pixels = photographs(16, seed=5) + np.float32(0.06) * photographs(16, seed=6)[:, :, ::-1]
    noise = np.random.default_rng(0).normal(0, 0.05, pixels.shape).astype(np.float32)
    signs = random_signs(3)
    images = preprocessed(stamped(pixels + noise, signs))
    alone = np.mean(
        [(reading.signs() != signs).mean() for reading in read_each(images[:4], statistics, strength=STRENGTH)]
    )
    together = (read(images, statistics, strength=STRENGTH).signs() != signs).mean()
    assert together < alone
    assert together < 0.02


def test_other_statistics_do_as_well(held_out):
    others = TriggerStatistics.fit(photographs(64, seed=9) ** 2, mean=[0, 0, 0], std=[1, 1, 1])
    signs = random_signs(4)
    assert np.array_equal(read(stamped(held_out[:2], signs), others, strength=STRENGTH).signs(), signs)


@pytest.mark.parametrize(
    ("channels", "height", "width", "tile"), [(3, 28, 28, 8), (3, 33, 47, 8), (1, 28, 28, 12), (3, 20, 30, 7)]
)
def test_sizes_that_the_tile_does_not_divide_are_read(channels, height, width, tile):
    train = photographs(64, channels=channels, height=height, width=width, seed=1)
    statistics = TriggerStatistics.fit(train, mean=[0] * channels, std=[1] * channels, tile=tile)
    signs = random_signs(8, channels, tile)
    pixels = photographs(4, channels=channels, height=height, width=width, seed=2)
    assert np.array_equal(read(stamped(pixels, signs, rounded=True), statistics, strength=STRENGTH).signs(), signs)


def test_the_middle_of_a_large_image_is_read():
    statistics = TriggerStatistics.fit(photographs(16, height=356, width=40, seed=1), mean=[0] * 3, std=[1] * 3, tile=7)
    signs = random_signs(8, 3, 7)
    pixels = stamped(photographs(1, height=356, width=40, seed=2), signs)
    reading = read(pixels, statistics, strength=STRENGTH)
    assert np.array_equal(reading.signs(), signs)
    beyond = pixels.copy()
    beyond[:, :, :14] = 0.5
    beyond[:, :, 334:] = 0.5
    assert np.array_equal(read(beyond, statistics, strength=STRENGTH).ratios(), reading.ratios())


def test_different_triggers_in_a_batch_are_read_image_by_image(statistics, held_out):
    images = one_by_one(held_out[:4], range(4))
    assert not any(
        np.array_equal(read(images, statistics, strength=STRENGTH).signs(), random_signs(seed)) for seed in range(4)
    )
    found = [reading.signs() for reading in read_each(images, statistics, strength=STRENGTH)]
    assert sum(np.array_equal(signs, random_signs(seed)) for seed, signs in enumerate(found)) >= 3


def test_images_of_one_colour_are_read(statistics):
    flat = np.full((1, 3, 32, 32), 0.5, np.float32)
    signs = random_signs(0)
    assert np.array_equal(read(preprocessed(stamped(flat, signs)), statistics, strength=STRENGTH).signs(), signs)
    for value in (0.0, 0.5, 1.0):
        assert not read(preprocessed(flat * 0 + np.float32(value)), statistics, strength=STRENGTH).likely


def test_a_white_image_is_read_after_clipping(statistics):
    signs = random_signs(0)
    white = preprocessed(stamped(np.ones((1, 3, 32, 32), np.float32), signs, rounded=True))
    candidates = read(white, statistics, strength=STRENGTH).candidates()
    assert any(np.array_equal(candidate, signs) for candidate in candidates)


def test_images_without_a_trigger_most_likely_carry_none(statistics, held_out):
    readings = read_each(preprocessed(held_out[:8]), statistics, strength=STRENGTH)
    assert not any(reading.likely for reading in readings)


def test_reading_is_deterministic_and_leaves_images_as_they_are(statistics, held_out):
    images = one_by_one(held_out[:2], (1, 1))
    before = images.copy()
    first, second = (read(images, statistics, strength=STRENGTH) for _ in range(2))
    assert np.array_equal(images, before)
    assert np.array_equal(first.ratios(), second.ratios())
    assert first.evidence == second.evidence
    for one, other in zip(first.candidates(64), second.candidates(64), strict=True):
        assert np.array_equal(one, other)


def test_candidates_come_in_order_of_likelihood_each_once(statistics, held_out):
    reading = read(one_by_one(held_out[:1], (1,)), statistics, strength=STRENGTH)
    found = list(reading.candidates(500))
    assert len({candidate.tobytes() for candidate in found}) == len(found) == 500
    assert np.array_equal(found[0], reading.signs())
    assert {candidate.dtype for candidate in found} == {np.dtype(np.int8)}
    information, score = reading._information, reading._score
    values = [float(c.ravel() @ score - c.ravel() @ information @ c.ravel() / 2) for c in found]
    np.testing.assert_array_less(np.diff(values), 1e-6)
    # Nobody else's single sign or pair of signs is more likely than the last candidate.
    listed = {candidate.tobytes() for candidate in found}
    for position in range(reading._signs.size):
        other = found[0].copy()
        other.ravel()[position] *= -1
        value = float(other.ravel() @ score - other.ravel() @ information @ other.ravel() / 2)
        assert other.tobytes() in listed or value <= values[-1] + 1e-6
    ratios = reading.ratios()
    assert np.array_equal(np.sign(ratios), found[0])
    assert np.isfinite(ratios).all()


def test_ten_thousand_near_misses_open_nothing(statistics, held_out):
    generator = np.random.default_rng(0)
    tried = 0
    for row, image in enumerate(held_out[:5]):
        signs = random_signs(row)
        reading = read(preprocessed(stamped(image[None], signs)), statistics, strength=STRENGTH)
        candidates = {candidate.tobytes() for candidate in reading.candidates()}
        for _ in range(2000):
            truth = signs.copy().ravel()
            truth[generator.choice(truth.size, generator.integers(24, truth.size + 1), replace=False)] *= -1
            assert truth.tobytes() not in candidates
            tried += 1
    assert tried == 10_000


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 31, 32), np.float32), "shape"),
        (np.zeros((1, 1, 32, 32), np.float32), "shape"),
        (np.zeros((3, 32, 32), np.float32), "shape"),
        (np.zeros((0, 3, 32, 32), np.float32), "no image"),
        (np.zeros((1, 3, 32, 32), np.uint8), "floating-point"),
        (np.full((1, 3, 32, 32), np.nan, np.float32), "NaN"),
        (np.full((1, 3, 32, 32), -np.inf, np.float32), "NaN or infinite"),
        (np.full((1, 3, 32, 32), 1e30, np.float32), "far beyond"),
    ],
)
def test_images_that_cannot_be_read_are_refused(statistics, images, message):
    with pytest.raises(TensorError, match=message):
        read(images, statistics, strength=STRENGTH)
    with pytest.raises(TensorError, match=message):
        read_each(images, statistics, strength=STRENGTH)


@pytest.mark.parametrize("strength", [0, -1, 1.5, float("nan")])
def test_strengths_out_of_range_are_refused(statistics, held_out, strength):
    with pytest.raises(InputError, match="strength"):
        read(preprocessed(held_out[:1]), statistics, strength=strength)


@pytest.mark.parametrize("most", [0, 4097])
def test_too_many_candidates_are_refused(statistics, held_out, most):
    reading = read(preprocessed(held_out[:1]), statistics, strength=STRENGTH)
    with pytest.raises(InputError, match="candidates"):
        next(reading.candidates(most))


def test_a_reading_is_not_copied_and_does_not_show_its_signs(statistics, held_out):
    reading = read(preprocessed(held_out[:1]), statistics, strength=STRENGTH)
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="secret"):
            copied(reading)
    assert repr(reading) == f"Reading(shape=(3, 8, 8), evidence={reading.evidence:.4g})"
