"""Occlusion: how far the class's probability falls when a patch of the image is covered."""

from dataclasses import dataclass

import torch
from torch import Tensor

from keylock.explainers.base import Classifier, FromPredictions
from keylock.explainers.predictions import blank_images, chunks, masked_scores, scores_of
from keylock.iterative import OcclusionLoop

__all__ = ["Occlusion"]


@dataclass(frozen=True)
class Occlusion(FromPredictions, OcclusionLoop):
    """Occlusion in torch; see `keylock.iterative.OcclusionLoop`."""

    def maps_from(
        self, predict: Classifier, images: Tensor, targets: Tensor, *, generator: torch.Generator | None
    ) -> Tensor:
        """Return maps (batch, height, width)."""
        height, width = images.shape[2:]
        windows, blank = self.windows(height, width), blank_images(images, self.baseline)
        whole = scores_of(predict, images, targets).unsqueeze(1)
        total = images.new_zeros((len(images), height, width), dtype=torch.float64)
        covered = total.new_zeros(height, width)
        for part in chunks(len(windows), len(images)):
            cover = torch.from_numpy(self.covers(windows[part], height, width)).to(images.device)
            falls = whole - masked_scores(predict, images, targets, 1 - cover, blank)
            total += torch.einsum("bm,mhw->bhw", falls, cover.double())
            covered += cover.sum(dim=0)
        return (total / covered).clamp_min(0).float()
