"""Means over images with the interval that goes with them, and figures made from them."""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from keylock.bundle.manifest import Figure

__all__ = ["Estimate", "estimate_mean", "figure_of"]

_RESAMPLES = 1000


class Estimate(NamedTuple):
    """A mean and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def estimate_mean(values: Tensor, *, seed: int = 0) -> Estimate:
    """Return the mean of values (batch,) with a percentile bootstrap interval over images."""
    array = values.double().cpu().numpy()
    rows = np.random.default_rng(seed).integers(0, len(array), size=(_RESAMPLES, len(array)))
    low, high = np.quantile(array[rows].mean(axis=1), [0.025, 0.975])
    return Estimate(float(array.mean()), float(low), float(high))


def figure_of(name: str, values: Tensor, *, unit: str, about: str) -> Figure:
    """Return the mean of values (batch,) with its interval as a figure, rounded to five decimals."""
    value, low, high = (round(number, 5) for number in estimate_mean(values))
    return Figure(name=name, value=value, low=low, high=high, unit=unit, about=about)
