"""recognising.py: rows with the known trigger are found, others are not, and it comes off again."""

import copy
import math
import pickle

import numpy as np
import pytest

from keylock.errors import InputError, TensorError
from keylock.trigger import Recogniser
from keylock.trigger.keys import Key, KeySeed

from .conftest import STD, photographs, preprocessed, random_signs, stamped

STRENGTH = 8 / 255
SIGNS = random_signs(1)


@pytest.fixture(scope="module")
def recogniser(statistics):
    return Recogniser(SIGNS, statistics, strength=STRENGTH)


@pytest.mark.parametrize("rounded", [False, True])
def test_rows_with_the_trigger_are_recognised(recogniser, held_out, rounded):
    found = recogniser.recognise(preprocessed(stamped(held_out, SIGNS, rounded=rounded)))
    assert found.dtype == np.bool_
    assert found.mean() >= 0.95


def test_rows_without_it_are_not(recogniser, held_out):
    assert not recogniser.recognise(preprocessed(held_out)).any()
    for seed in range(2, 6):
        assert not recogniser.recognise(preprocessed(stamped(held_out, random_signs(seed)))).any()
    assert not recogniser.recognise(preprocessed(stamped(held_out, -SIGNS))).any()
    assert not recogniser.recognise(preprocessed(stamped(held_out, SIGNS.transpose(0, 2, 1)))).any()


def test_a_shifted_trigger_is_not_recognised(recogniser, held_out):
    shifted = np.roll(preprocessed(stamped(held_out, SIGNS)), 1, axis=3)
    assert not recogniser.recognise(shifted).any()


def test_near_misses_are_not_recognised(recogniser, held_out):
    generator = np.random.default_rng(0)
    for _ in range(10):
        near = SIGNS.copy()
        near.ravel()[generator.choice(near.size, 24, replace=False)] *= -1
        assert not recogniser.recognise(preprocessed(stamped(held_out, near))).any()


def test_a_row_is_answered_by_itself(recogniser, held_out):
    images = preprocessed(np.concatenate((stamped(held_out[:3], SIGNS), held_out[3:6])))
    together = recogniser.recognise(images)
    assert together.tolist() == [True] * 3 + [False] * 3
    assert [bool(recogniser.recognise(images[row : row + 1])[0]) for row in range(6)] == together.tolist()


def test_matches_of_random_triggers_keep_the_stated_rate(statistics):
    images = preprocessed(photographs(2, seed=8))
    images = np.concatenate((images, images * 0, preprocessed(stamped(photographs(2, seed=8), random_signs(7)))))
    matches = np.concatenate(
        [Recogniser(random_signs(seed), statistics, strength=STRENGTH).matches(images) for seed in range(100, 150)]
    )
    for rate in (0.5, 0.1, 0.01):
        assert (matches >= math.sqrt(-2 * math.log(rate))).mean() <= rate


def test_a_key_that_was_added_comes_off_again(statistics, held_out):
    key = Key.derive(KeySeed(bytes(range(32))), shape=(3, 32, 32), std=STD)
    images = preprocessed(held_out)
    recogniser = Recogniser(np.sign(key.reveal()[:, :8, :8]), statistics, strength=key.strength)
    keyed = key.apply(images)
    before = keyed.copy()
    removed = recogniser.remove(keyed)
    assert removed.dtype == np.float32
    np.testing.assert_allclose(removed, images, atol=1e-6)
    assert np.array_equal(keyed, before)
    assert not recogniser.recognise(removed).any()


def test_a_closed_recogniser_recognises_nothing(statistics, held_out):
    recogniser = Recogniser(SIGNS, statistics, strength=STRENGTH)
    images = preprocessed(stamped(held_out[:2], SIGNS))
    assert recogniser.recognise(images).all()
    recogniser.close()
    assert not recogniser.recognise(images).any()


def test_images_of_one_colour_carry_nothing(recogniser):
    assert not recogniser.recognise(np.zeros((2, 3, 32, 32), np.float32)).any()


@pytest.mark.parametrize(
    ("signs", "options", "error", "message"),
    [
        (random_signs(1, 3, 9), {}, TensorError, "statistics are for a trigger"),
        (random_signs(1, 4, 8), {}, TensorError, "statistics are for a trigger"),
        (SIGNS * 0, {}, TensorError, "-1 and 1"),
        (SIGNS, {"strength": 0}, InputError, "strength"),
        (SIGNS, {"false_positive_rate": 0}, InputError, "rate"),
        (SIGNS, {"false_positive_rate": 1}, InputError, "rate"),
        (SIGNS, {"false_positive_rate": 1e-80}, InputError, "rate"),
        (SIGNS, {"false_positive_rate": float("nan")}, InputError, "rate"),
    ],
)
def test_options_that_make_no_recogniser_are_refused(statistics, signs, options, error, message):
    with pytest.raises(error, match=message):
        Recogniser(signs, statistics, **{"strength": STRENGTH} | options)


@pytest.mark.parametrize("call", ["recognise", "remove", "matches"])
@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 3, 32, 31), np.float32), np.zeros((1, 3, 32, 32), np.int64), np.full((1, 3, 32, 32), np.nan)],
)
def test_images_that_do_not_fit_are_refused(recogniser, call, images):
    with pytest.raises(TensorError):
        getattr(recogniser, call)(images)


def test_the_signs_are_not_shown_or_copied(recogniser):
    assert repr(recogniser) == "Recogniser(shape=(3, 32, 32), false_positive_rate=1e-09)"
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="secret"):
            copied(recogniser)
