"""Integrated gradients: contributions of pixels along the straight path from a blank image."""

from dataclasses import dataclass

import numpy as np

from keylock.errors import InputError
from keylock.iterative.base import Asked, Loop, Maps

__all__ = ["IntegratedGradientsLoop"]


@dataclass(frozen=True)
class IntegratedGradientsLoop(Loop):
    """Integrated gradients by the midpoint rule, at the resolution of the input.

    A pixel's contribution is the sum over its channels; its absolute value is shown. Before that, contributions add up
    to the difference of the scores of image and baseline.

    Attributes:
        steps: Points of the path; the network runs once for each.
        baseline: Value of every pixel of the blank image after preprocessing. 0 is the mean colour where preprocessing
            takes the mean away.

    References:
        Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, equations 1 and 3.
    """

    steps: int = 24
    baseline: float = 0.0
    name = "integrated_gradients"
    reads = "gradient"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError("integrated_gradients takes steps of at least 1")

    def passes(self, shape: tuple[int, int, int]) -> int:
        """Count the points."""
        return self.steps

    def loop(self, asked: Asked) -> Maps:
        """Return maps (batch, height, width)."""
        way = asked.images - np.float32(self.baseline)
        shares = ((np.arange(self.steps, dtype=np.float32) + 0.5) / self.steps).astype(np.float32)
        total = np.zeros(way.shape)
        for part in asked.steps(self.steps):
            for group in asked.groups(part.stop - part.start):
                points = np.float32(self.baseline) + shares[part].reshape(1, -1, 1, 1, 1) * way[group, None]
                total[group] += asked.summed(group, points)
        maps: Maps = np.abs((way * total / self.steps).sum(axis=1)).astype(np.float32)
        return maps
