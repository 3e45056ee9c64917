"""SmoothGrad: the input gradient, averaged over noisy copies of the image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from keylock.explainers.base import Asked, Family, OwnPasses
from keylock.explainers.random_source import draws_from
from keylock.iterative import SmoothGradLoop

__all__ = ["SmoothGrad"]


@dataclass(frozen=True)
class SmoothGrad(OwnPasses, SmoothGradLoop):
    """SmoothGrad in torch; see `keylock.iterative.SmoothGradLoop`."""

    family = Family.GRADIENT
    second_order = True
    compiled = False

    def maps_of(self, asked: Asked) -> Tensor:
        """Return maps (batch, height, width)."""
        images = asked.images
        source = draws_from(asked.generator, self.seed)
        span = images.amax(dim=(1, 2, 3), keepdim=True) - images.amin(dim=(1, 2, 3), keepdim=True)
        total = torch.zeros_like(images)
        for _ in range(self.samples):
            noise = torch.from_numpy(self.draw_noise(images.shape[1:], source)).to(images)
            noisy = images + self.noise * span * noise
            total = total + asked.gradient(noisy)
        return (total / self.samples).abs().mean(dim=1)
