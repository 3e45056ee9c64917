"""SmoothGrad: the input gradient, averaged over noisy copies of the image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from keylock.errors import InputError
from keylock.explainers.base import Asked, Family, OwnPasses
from keylock.explainers.random_source import draws_from

__all__ = ["SmoothGrad"]


@dataclass(frozen=True)
class SmoothGrad(OwnPasses):
    """The mean gradient over noisy inputs; its absolute value, averaged over channels, at the resolution of the input.

    The same noise is added to every image of a batch, scaled to each image's own range, so that a map does not depend
    on its neighbours.

    Attributes:
        samples: Noisy copies of each image; the network runs once for each.
        noise: Standard deviation of the noise as a share of the image's range, largest minus smallest value.
        seed: Of the noise, where no generator is given.

    References:
        Smilkov et al., "SmoothGrad: removing noise by adding noise", arXiv 1706.03825 (2017), section 3.1.
    """

    samples: int = 16
    noise: float = 0.15
    seed: int = 0
    name = "smooth_grad"
    family = Family.GRADIENT
    second_order = True
    compiled = False

    def __post_init__(self) -> None:
        if self.samples < 1 or not self.noise >= 0:
            raise InputError("smooth_grad takes samples of at least 1 and noise of at least 0")

    def maps_of(self, asked: Asked) -> Tensor:
        """Return maps (batch, height, width)."""
        images = asked.images
        source = draws_from(asked.generator, self.seed)
        span = images.amax(dim=(1, 2, 3), keepdim=True) - images.amin(dim=(1, 2, 3), keepdim=True)
        total = torch.zeros_like(images)
        for _ in range(self.samples):
            noise = torch.randn(images.shape[1:], generator=source, device=source.device).to(images)
            noisy = images + self.noise * span * noise
            total = total + asked.gradient(noisy)
        return (total / self.samples).abs().mean(dim=1)
