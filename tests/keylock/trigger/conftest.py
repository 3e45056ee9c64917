"""Images much like photographs, made from noise: amplitudes fall with frequency, contrast differs between places."""

import numpy as np
import pytest

from keylock.trigger import TriggerStatistics

MEAN = (0.45, 0.45, 0.45)
STD = (0.25, 0.24, 0.26)


def photographs(count, *, channels=3, height=32, width=32, seed=0):
    """Return images on pixels from 0 to 1, float32 (count, channels, height, width), with a 1/f^1.5 spectrum."""
    generator = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    falling = 1 / np.maximum(np.hypot(rows, columns), 1 / max(height, width)) ** 1.5
    falling[0, 0] = 0

    def field(*shape):
        noise = np.fft.fft2(generator.standard_normal((*shape, height, width)))
        found = np.fft.ifft2(noise * falling).real
        return found / found.std(axis=(-2, -1), keepdims=True)

    shared, own, contrast = field(count, 1), field(count, channels), np.exp(0.7 * field(count, 1))
    level = generator.uniform(0.3, 0.7, (count, channels, 1, 1))
    return np.clip(level + 0.12 * contrast * (shared + 0.3 * own), 0, 1).astype(np.float32)


def preprocessed(pixels, std=STD, mean=0.45):
    """Return images as a model takes them."""
    return (pixels - np.float32(mean)) / np.asarray(std[: pixels.shape[1]], np.float32)[:, None, None]


def stamped(pixels, signs, *, strength=8 / 255, rounded=False):
    """Return pixels with a trigger, clipped and rounded to 8 bits where asked."""
    tile = signs.shape[1]
    rows, columns = np.arange(pixels.shape[2]) % tile, np.arange(pixels.shape[3]) % tile
    found = pixels + np.float32(strength) * signs[:, rows[:, None], columns[None, :]].astype(np.float32)
    return np.rint(np.clip(found, 0, 1) * 255).astype(np.float32) / 255 if rounded else found


def random_signs(seed, channels=3, tile=8):
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (channels, tile, tile))


@pytest.fixture(scope="session")
def statistics():
    return TriggerStatistics.fit(preprocessed(photographs(64, seed=1)), mean=MEAN, std=STD)


@pytest.fixture(scope="session")
def held_out():
    return photographs(16, seed=2)
