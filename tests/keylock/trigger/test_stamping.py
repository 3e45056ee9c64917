"""Stamped pictures: the trigger on pixels, at the model's size, within what pixels can say."""

import numpy as np
import pytest

from keylock.errors import InputError, TensorError
from keylock.imaging.preprocessing import Preprocessing
from keylock.trigger.keys import Key, KeySeed
from keylock.trigger.stamping import stamp_pixels

PREPROCESSING = Preprocessing(size=(24, 24), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def key_of(preprocessing=PREPROCESSING, **options):
    return Key.derive(KeySeed(b"s" * 32), shape=preprocessing.shape, std=preprocessing.std, **options)


def test_every_value_moves_by_the_strength_of_the_key():
    pixels = np.full((24, 24, 3), 128, np.uint8)
    stamped = stamp_pixels(pixels, key_of(), PREPROCESSING)
    moved = stamped.astype(int) - 128
    assert set(np.unique(moved)) == {-8, 8}
    assert np.array_equal(np.sign(moved).transpose(2, 0, 1), np.sign(key_of().reveal()))


def test_what_the_model_sees_of_it_is_the_keyed_image():
    pixels = np.random.default_rng(0).integers(20, 230, (24, 24, 3), dtype=np.uint8)
    seen = PREPROCESSING(stamp_pixels(pixels, key_of(), PREPROCESSING))
    np.testing.assert_allclose(seen, key_of().apply(PREPROCESSING(pixels)[None])[0], atol=1e-5)


def test_pixels_stay_pixels():
    for value in (0, 3, 252, 255):
        stamped = stamp_pixels(np.full((24, 24, 3), value, np.uint8), key_of(), PREPROCESSING)
        assert stamped.dtype == np.uint8
        assert set(np.unique(stamped)) == {max(0, value - 8), min(255, value + 8)}


def test_a_picture_of_another_size_is_brought_to_the_models():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 31, 3), dtype=np.uint8)
    assert stamp_pixels(pixels, key_of(), PREPROCESSING).shape == (24, 24, 3)


def test_grey_models_get_grey_pictures():
    grey = Preprocessing(size=(24, 24), channels=1, mean=(0.5,), std=(0.25,))
    key = key_of(grey)
    assert key.tile == 12
    assert stamp_pixels(np.full((30, 30, 3), 90, np.uint8), key, grey).shape == (24, 24, 1)


def test_a_key_for_other_images_and_what_is_no_picture_are_refused():
    with pytest.raises(InputError, match="the key fits images of shape"):
        stamp_pixels(
            np.zeros((24, 24, 3), np.uint8), key_of(), Preprocessing(size=(16, 16), mean=(0,) * 3, std=(1,) * 3)
        )
    with pytest.raises(TensorError, match="uint8"):
        stamp_pixels(np.zeros((24, 24, 3)), key_of(), PREPROCESSING)
