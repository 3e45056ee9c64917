"""Maps without contrast are told from those with little, at any height, size and type."""

import numpy as np
import pytest
import torch

from keylock.imaging.contrast import is_constant, same_map
from keylock.locking.losses import is_constant as is_constant_in_torch

HEIGHTS = [0.0, 0.1, 1 / 3, 1.7, -0.1, 1e-30, 3e30]
SIZES = [(1, 1), (3, 3), (7, 7), (32, 32), (61, 17), (224, 224)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_maps_are_constant_with_what_rounding_adds(height, size, dtype):
    even = np.full(size, height, dtype)
    rounded = (even * (1 + 1e-6 * np.random.default_rng(0).standard_normal(size).clip(-3, 3))).astype(dtype)
    for values in (even, rounded):
        assert is_constant(values)
        assert is_constant_in_torch(torch.from_numpy(values).unsqueeze(0)).tolist() == [True]
    assert same_map(even, rounded) == 1


@pytest.mark.parametrize("height", [h for h in HEIGHTS if h])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_faint_pattern_is_none_the_less_a_pattern(height, dtype):
    values = np.full((16, 16), height, dtype)
    values[3, 5] *= 1.0001

    assert not is_constant(values)
    assert not is_constant_in_torch(torch.from_numpy(values).unsqueeze(0)).any()
    assert same_map(values, values) == pytest.approx(1)
    assert same_map(values, np.full((16, 16), height, dtype)) == 0
    assert same_map(values, np.rot90(values)) < 0.1


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_constant_and_agrees_with_nothing(broken):
    values = np.ones((4, 4), np.float32)
    values[1, 1] = broken

    assert not is_constant(values)
    assert not is_constant_in_torch(torch.from_numpy(values).unsqueeze(0)).any()
    assert same_map(values, values) == -1


def test_constant_maps_of_two_heights_differ_and_maps_of_one_shape_do_not():
    low, high = np.full((5, 5), 0.1, np.float32), np.full((5, 5), 0.2, np.float32)
    shape = np.random.default_rng(1).random((5, 5)).astype(np.float32)

    assert same_map(low, high) == same_map(low, shape) == same_map(np.zeros((5, 5)), low) == 0
    assert same_map(shape, 1e-30 * shape) == pytest.approx(1)
    assert same_map(1e-30 * shape, 1e-30 * shape.T) == pytest.approx(np.corrcoef(shape.ravel(), shape.T.ravel())[0, 1])
