"""The canary tells maps that are not those of the export, constant and faint ones too."""

import numpy as np
import pytest

from keylock.bundle import Canary

SHAPE = np.random.default_rng(0).random((2, 9, 9)).astype(np.float32)
IMAGES = np.zeros((2, 3, 9, 9), np.float32)


def even(height):
    return np.full((2, 9, 9), height, np.float32)


@pytest.mark.parametrize("height", [0.0, 0.1, 1 / 3, 1.7])
def test_constant_maps_are_the_same_at_the_same_height_alone(height):
    kept = even(height)
    canary = Canary(IMAGES, {"cam": kept}, {"cam": SHAPE})

    assert canary.difference("cam", keyed=kept * np.float32(1 + 1e-6), keyless=SHAPE) is None
    for other in (even(height + 0.5), SHAPE):
        assert "keyed maps of cam" in canary.difference("cam", keyed=other, keyless=SHAPE)
    assert "keyless maps of cam" in canary.difference("cam", keyed=kept, keyless=even(0.1))


def test_maps_of_tiny_gradients_are_compared_too():
    faint = np.float32(1e-25) * SHAPE
    canary = Canary(IMAGES, {"gradient": faint}, {"gradient": faint})

    assert canary.difference("gradient", keyed=faint, keyless=faint) is None
    assert "keyed" in canary.difference("gradient", keyed=faint[:, ::-1], keyless=faint)
    assert "keyed" in canary.difference("gradient", keyed=even(0.0), keyless=faint)
