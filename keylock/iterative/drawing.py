"""Where the random numbers of explainers come from: the same on every machine, in every version of NumPy."""

import numpy as np

__all__ = ["Source", "source_of"]

Source = np.random.RandomState
"""NumPy promises the numbers of this generator for good, so that a map proved at export can be computed again."""


def source_of(seed: int) -> Source:
    """Return a new source for a seed, any whole number."""
    return Source(np.random.MT19937(np.random.SeedSequence(seed % 2**128)))
