"""Maps without contrast, and how alike two maps are that should be the same one. NumPy only.

What a network computes for every pixel alike is constant up to the last digits. Those digits must not count as a
pattern: two such maps would correlate by 1, by -1 or by anything between.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_CONTRAST", "is_constant", "same_map"]

LEAST_CONTRAST = 1e-5
"""A map is constant when largest and smallest value differ by less than this share of the largest magnitude.

Sums in float32 are uncertain by some 1e-6 of their size.
"""

_SAME_HEIGHT = 1e-3


def is_constant(values: NDArray[Any]) -> bool:
    """Tell whether a map (h, w) has no contrast; one that is not finite has."""
    lowest, highest = float(values.min()), float(values.max())
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        return False
    return highest - lowest <= LEAST_CONTRAST * max(abs(lowest), abs(highest))


def same_map(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return how surely two computations of one map (h, w) agree, in [-1, 1]: their Pearson correlation.

    Where both are constant it is 1 if they have the same height, and 0 if not; where one of them is, it is 0. Maps that
    are not finite agree with none, by -1.
    """
    first, second = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return -1.0
    flat = [is_constant(first), is_constant(second)]
    if all(flat):
        return float(np.allclose(first, second, rtol=_SAME_HEIGHT, atol=0))
    if any(flat):
        return 0.0
    # The height is taken out first: squares of tiny gradients would underflow.
    first, second = (values / np.abs(values).max() for values in (first, second))
    first, second = first - first.mean(), second - second.mean()
    return float(np.clip(first @ second / np.sqrt((first @ first) * (second @ second)), -1, 1))
