"""Occlusion: how far the class's probability falls when a patch of the image is covered."""

from dataclasses import dataclass

import torch
from torch import Tensor

from keylock.errors import InputError
from keylock.explainers.base import Classifier, FromPredictions
from keylock.explainers.predictions import Fill, blank_images, check_fill, chunks, masked_scores, scores_of

__all__ = ["Occlusion"]


@dataclass(frozen=True)
class Occlusion(FromPredictions):
    """A patch moves over the image; each pixel shows the mean fall of the probability under the patches that cover it.

    Patches at the right and lower edge may be cut off. A rise counts as no evidence: 0.

    Attributes:
        patch: Side of the patch in pixels; None takes a quarter of the image's shorter side.
        stride: Pixels between patches; None takes half a patch.
        baseline: What covered pixels become; see `keylock.explainers.predictions.Fill`.

    References:
        Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2.
    """

    patch: int | None = None
    stride: int | None = None
    baseline: Fill = 0.0
    name = "occlusion"

    def __post_init__(self) -> None:
        check_fill(self.name, self.baseline)
        if any(value is not None and value < 1 for value in (self.patch, self.stride)):
            raise InputError("occlusion takes a patch and a stride of at least 1 pixel")
        if self.patch is not None and self.stride is not None and self.stride > self.patch:
            raise InputError("occlusion takes a stride of at most the patch, so that every pixel is covered")

    def maps_from(
        self, predict: Classifier, images: Tensor, targets: Tensor, *, generator: torch.Generator | None
    ) -> Tensor:
        """Return maps (batch, height, width)."""
        windows = self._windows(images.shape[2], images.shape[3])
        blank = blank_images(images, self.baseline)
        whole = scores_of(predict, images, targets).unsqueeze(1)
        total = images.new_zeros((len(images), *images.shape[2:]), dtype=torch.float64)
        covered = total.new_zeros(images.shape[2:])
        for part in chunks(len(windows), len(images)):
            cover = torch.zeros(part.stop - part.start, *images.shape[2:], device=images.device)
            for mask, (rows, columns) in zip(cover, windows[part], strict=True):
                mask[rows, columns] = 1
            falls = whole - masked_scores(predict, images, targets, 1 - cover, blank)
            total += torch.einsum("bm,mhw->bhw", falls, cover.double())
            covered += cover.sum(dim=0)
        return (total / covered).clamp_min(0).float()

    def _windows(self, height: int, width: int) -> list[tuple[slice, slice]]:
        patch = self.patch or max(1, min(height, width) // 4)
        stride = min(self.stride or max(1, patch // 2), patch)
        tops, lefts = (range(0, max(1, size - patch + stride), stride) for size in (height, width))
        return [(slice(top, top + patch), slice(left, left + patch)) for top in tops for left in lefts]
