"""SmoothGrad: the input gradient, averaged over noisy copies of the image."""

from dataclasses import dataclass

import numpy as np

from keylock.errors import InputError
from keylock.iterative.base import Asked, Loop, Maps
from keylock.iterative.drawing import Source, source_of

__all__ = ["SmoothGradLoop"]


@dataclass(frozen=True)
class SmoothGradLoop(Loop):
    """The mean gradient over noisy inputs; its absolute value, averaged over channels, at the resolution of the input.

    The same noise is added to every image, scaled to each image's own range, so that a map does not depend on its
    neighbours.

    Attributes:
        samples: Noisy copies of each image; the network runs once for each.
        noise: Standard deviation of the noise as a share of the image's range, largest minus smallest value.
        seed: Of the noise.

    References:
        Smilkov et al., "SmoothGrad: removing noise by adding noise", arXiv 1706.03825 (2017), section 3.1.
    """

    samples: int = 16
    noise: float = 0.15
    seed: int = 0
    name = "smooth_grad"
    reads = "gradient"

    def __post_init__(self) -> None:
        if self.samples < 1 or not self.noise >= 0:
            raise InputError("smooth_grad takes samples of at least 1 and noise of at least 0")

    def passes(self, shape: tuple[int, int, int]) -> int:
        """Count the noisy copies."""
        return self.samples

    def loop(self, asked: Asked) -> Maps:
        """Return maps (batch, height, width)."""
        images, source = asked.images, source_of(self.seed)
        span = np.ptp(images, axis=(1, 2, 3)).reshape(-1, 1, 1, 1, 1) * np.float32(self.noise)
        total = np.zeros(images.shape)
        for part in asked.steps(self.samples):
            noise = np.stack([self.draw_noise(images.shape[1:], source) for _ in range(part.stop - part.start)])
            for group in asked.groups(len(noise)):
                total[group] += asked.summed(group, images[group, None] + span[group] * noise)
        maps: Maps = np.abs(total / self.samples).mean(axis=1).astype(np.float32)
        return maps

    def draw_noise(self, shape: tuple[int, ...], source: Source) -> np.ndarray:
        """Draw the noise of the next copy, float32 in `shape`, of standard deviation 1."""
        return source.standard_normal(shape).astype(np.float32)
