"""SmoothGrad: the input gradient, averaged over noisy copies of the image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from keylock.explainers.base import Family, MultiPass
from keylock.explainers.passes import Run
from keylock.explainers.random_source import drawn_seed
from keylock.iterative import SmoothGradLoop
from keylock.iterative.drawing import source_of

__all__ = ["SmoothGrad"]


@dataclass(frozen=True)
class SmoothGrad(MultiPass, SmoothGradLoop):
    """SmoothGrad in torch; see `keylock.iterative.SmoothGradLoop`."""

    family = Family.GRADIENT
    second_order = True
    compiled = False

    def maps_in(self, run: Run) -> Tensor:
        """Return maps (batch, height, width)."""
        images = run.images
        source = source_of(self.seed if run.generator is None else drawn_seed(run.generator))
        span = images.amax(dim=(1, 2, 3), keepdim=True) - images.amin(dim=(1, 2, 3), keepdim=True)
        total = torch.zeros_like(images)
        for _ in range(self.samples):
            noise = torch.from_numpy(self.draw_noise(images.shape[1:], source)).to(images)
            noisy = images + self.noise * span * noise
            total = total + run.gradient(noisy)
        return (total / self.samples).abs().mean(dim=1)
