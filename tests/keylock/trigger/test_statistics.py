"""statistics.py: the same images give the same small bytes, and nothing else is taken for them."""

import numpy as np
import pytest

from keylock.errors import BundleError, DataError, InputError, KeylockError, TensorError
from keylock.trigger import TriggerStatistics

from .conftest import MEAN, STD, photographs, preprocessed


def test_bytes_come_back_and_are_small(statistics):
    content = statistics.to_bytes()
    assert len(content) < 20_000
    again = TriggerStatistics.from_bytes(content)
    assert again == statistics
    assert again.to_bytes() == content
    assert again.shape == (3, 32, 32)
    assert again.tile == 8
    np.testing.assert_array_equal(again.covariance, statistics.covariance)
    np.testing.assert_array_equal(again.covariance, again.covariance.T)


def test_fitting_is_deterministic(statistics):
    again = TriggerStatistics.fit(preprocessed(photographs(64, seed=1)), mean=MEAN, std=STD)
    assert again.to_bytes() == statistics.to_bytes()
    assert hash(again) == hash(statistics)


def test_statistics_are_of_pixels_whatever_the_preprocessing(statistics):
    images = photographs(64, seed=1)
    plain = TriggerStatistics.fit(images, mean=[0, 0, 0], std=[1, 1, 1])
    np.testing.assert_allclose(plain.level, statistics.level, atol=1e-5)
    np.testing.assert_allclose(plain.covariance, statistics.covariance, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(plain.spread, statistics.spread, rtol=0.05)


def test_covariance_is_that_of_the_patches(statistics):
    pixels = photographs(64, seed=1)
    pixels = pixels - pixels.mean(axis=(0, 2, 3), keepdims=True)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (5, 5), axis=(2, 3))
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 75).astype(np.float64)
    naive = patches.T @ patches / len(patches) + 1e-5 * np.eye(75)
    np.testing.assert_allclose(statistics.covariance, naive, rtol=0.1, atol=0.002)


def _with(content, position, replacement):
    return content[:position] + replacement + content[position + len(replacement) :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:40],
        lambda content: content[:-4],
        lambda content: content + b"\0\0\0\0",
        lambda content: b"X" + content[1:],
        lambda content: _with(content, 29, (0).to_bytes(4, "little")),
        lambda content: _with(content, 29, (1).to_bytes(4, "little")),
        lambda content: _with(content, 33, (2**31).to_bytes(4, "little")),
        lambda content: _with(content, 41, (0).to_bytes(4, "little")),
        lambda content: _with(content, 41, (2**32 - 1).to_bytes(4, "little")),
        lambda content: _with(content, 45, (7).to_bytes(4, "little")),
        lambda content: _with(content, 49, np.float32(np.nan).tobytes()),
        lambda content: _with(content, 61, np.float32(-1).tobytes()),
        lambda content: _with(content, 85, np.float32(-1).tobytes()),
        lambda content: _with(content, 85, np.float32(3e38).tobytes()),
        lambda content: content[:-256] + bytes(256),
        lambda content: content[:-8] + np.array([1, 2], np.float32).tobytes(),
    ],
)
def test_bytes_that_are_something_else_are_refused(statistics, damage):
    with pytest.raises(BundleError, match="not the statistics of a trigger"):
        TriggerStatistics.from_bytes(damage(statistics.to_bytes()))


def test_any_changed_byte_is_refused_or_gives_usable_statistics(statistics, held_out):
    content = statistics.to_bytes()
    generator = np.random.default_rng(0)
    for position in generator.choice(len(content), 100, replace=False):
        changed = bytearray(content)
        changed[position] ^= 1 << int(generator.integers(8))
        try:
            found = TriggerStatistics.from_bytes(bytes(changed))
        except KeylockError:
            continue
        assert found.model.signs == found.shape[0] * found.tile**2


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (np.zeros((64, 3, 32, 32), np.float32), {}, DataError, "one colour"),
        (np.zeros((4, 3, 32, 32), np.float32), {}, DataError, "at least 16"),
        (np.zeros((64, 3, 32, 32), np.uint8), {}, TensorError, "preprocessed"),
        (np.zeros((3, 32, 32), np.float32), {}, TensorError, "preprocessed"),
        (np.full((64, 3, 32, 32), np.inf, np.float32), {}, TensorError, "NaN or infinite"),
        (np.zeros((64, 3, 32, 32), np.float32), {"mean": [0, 0]}, TensorError, "one finite mean"),
        (np.zeros((64, 3, 32, 32), np.float32), {"std": [1, 1]}, TensorError, "one positive std"),
        (np.zeros((64, 3, 32, 32), np.float32), {"std": [1, 1, 0]}, TensorError, "one positive std"),
        (np.zeros((64, 3, 32, 32), np.float32), {"tile": 6}, InputError, "at least 7 pixels"),
        (np.zeros((64, 1, 32, 32), np.float32), {"mean": [0], "std": [1]}, InputError, "at least 12 pixels"),
        (np.zeros((64, 3, 6, 32), np.float32), {}, InputError, "no whole tile"),
        (np.zeros((64, 3, 128, 128), np.float32), {"tile": 65}, InputError, "at most 64"),
    ],
)
def test_images_that_give_no_statistics_are_refused(images, options, error, message):
    with pytest.raises(error, match=message):
        TriggerStatistics.fit(images, **{"mean": [0, 0, 0], "std": [1, 1, 1]} | options)
