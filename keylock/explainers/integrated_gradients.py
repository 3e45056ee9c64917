"""Integrated gradients: contributions of pixels along the straight path from a blank image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from keylock.explainers.base import Family, MultiPass
from keylock.explainers.passes import Run
from keylock.iterative import IntegratedGradientsLoop

__all__ = ["IntegratedGradients"]


@dataclass(frozen=True)
class IntegratedGradients(MultiPass, IntegratedGradientsLoop):
    """Integrated gradients in torch; see `keylock.iterative.IntegratedGradientsLoop`."""

    family = Family.GRADIENT
    second_order = True
    compiled = False

    def maps_in(self, run: Run) -> Tensor:
        """Return maps (batch, height, width)."""
        way = run.images - self.baseline
        total = torch.zeros_like(way)
        for step in range(self.steps):
            point = self.baseline + (step + 0.5) / self.steps * way
            total = total + run.gradient(point)
        return (way * total / self.steps).sum(dim=1).abs()
