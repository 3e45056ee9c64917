"""Integrated gradients: contributions of pixels along the straight path from a blank image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from keylock.errors import InputError
from keylock.explainers.base import Asked, Family, OwnPasses

__all__ = ["IntegratedGradients"]


@dataclass(frozen=True)
class IntegratedGradients(OwnPasses):
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
    family = Family.GRADIENT
    second_order = True
    compiled = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError("integrated_gradients takes steps of at least 1")

    def maps_of(self, asked: Asked) -> Tensor:
        """Return maps (batch, height, width)."""
        way = asked.images - self.baseline
        total = torch.zeros_like(way)
        for step in range(self.steps):
            point = self.baseline + (step + 0.5) / self.steps * way
            total = total + asked.gradient(point)
        return (way * total / self.steps).sum(dim=1).abs()
