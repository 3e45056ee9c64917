"""LIME and KernelSHAP, and what they share: segments switched on and off, and the answers to patterns of them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keylock.explainers.base import Classifier, FromPredictions
from keylock.explainers.predictions import blank_images, chunks, masked_scores
from keylock.explainers.random_source import draws_from
from keylock.iterative import KernelSHAPLoop, LIMELoop
from keylock.iterative.segments import Patterns, SegmentLoop

__all__ = ["LIME", "KernelSHAP"]


class _SegmentModel(FromPredictions, SegmentLoop):
    """Asks the classifier in torch; what to ask, and the linear model, are those of the loop."""

    def maps_from(
        self, predict: Classifier, images: Tensor, targets: Tensor, *, generator: torch.Generator | None
    ) -> Tensor:
        """Return maps (batch, height, width)."""
        cut, segments = self.cut(images.float().cpu().numpy())
        numbers, blank = torch.tensor(cut, device=images.device), blank_images(images, self.baseline)

        def scores(patterns: Patterns) -> NDArray[np.float64]:
            shown = torch.from_numpy(patterns).to(images.device)
            # (patterns, batch, height, width), brought to the front of the images.
            parts = [
                masked_scores(predict, images, targets, shown[part][:, numbers].transpose(0, 1), blank)
                for part in chunks(len(shown), len(images))
            ]
            found: NDArray[np.float64] = torch.cat(parts, dim=1).cpu().numpy()
            return found

        weights = torch.from_numpy(self.weigh(segments, scores, draws_from(generator, self.seed))).to(images.device)
        return weights.gather(1, numbers.flatten(1)).view(numbers.shape).clamp_min(0).float()


@dataclass(frozen=True)
class LIME(_SegmentModel, LIMELoop):
    """LIME in torch; see `keylock.iterative.LIMELoop`."""


@dataclass(frozen=True)
class KernelSHAP(_SegmentModel, KernelSHAPLoop):
    """KernelSHAP in torch; see `keylock.iterative.KernelSHAPLoop`."""
