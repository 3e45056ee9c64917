"""RISE: random masks, each counted by the class's probability on the image seen through it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from keylock.explainers.base import Classifier, FromPredictions
from keylock.explainers.predictions import blank_images, chunks, masked_scores
from keylock.explainers.random_source import draws_from
from keylock.iterative import RISELoop

__all__ = ["RISE"]


@dataclass(frozen=True)
class RISE(FromPredictions, RISELoop):
    """RISE in torch; see `keylock.iterative.RISELoop`."""

    def maps_from(
        self, predict: Classifier, images: Tensor, targets: Tensor, *, generator: torch.Generator | None
    ) -> Tensor:
        """Return maps (batch, height, width)."""
        height, width = images.shape[2:]
        drawn, blank = self.draw(height, width, draws_from(generator, self.seed)), blank_images(images, self.baseline)
        total = images.new_zeros((len(images), height, width), dtype=torch.float64)
        for part in chunks(self.masks, len(images)):
            masks = torch.from_numpy(drawn.enlarged(part)).to(images.device)
            scores = masked_scores(predict, images, targets, masks, blank)
            total += torch.einsum("bm,mhw->bhw", scores, masks.double())
        return (total / (self.masks * self.keep)).float()
