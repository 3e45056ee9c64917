"""Occlusion: how far the class's probability falls when a patch of the image is covered."""

from dataclasses import dataclass

import numpy as np

from keylock.errors import InputError
from keylock.iterative.base import Asked, Loop, Maps
from keylock.iterative.fills import Fill, blank_images, check_fill

__all__ = ["OcclusionLoop"]


@dataclass(frozen=True)
class OcclusionLoop(Loop):
    """A patch moves over the image; each pixel shows the mean fall of the probability under the patches that cover it.

    Patches at the right and lower edge may be cut off. A rise counts as no evidence: 0.

    Attributes:
        patch: Side of the patch in pixels; None takes a quarter of the image's shorter side.
        stride: Pixels between patches; None takes half a patch.
        baseline: What covered pixels become; see `keylock.iterative.fills.Fill`.

    References:
        Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2.
    """

    patch: int | None = None
    stride: int | None = None
    baseline: Fill = 0.0
    name = "occlusion"
    reads = "logits"

    def __post_init__(self) -> None:
        check_fill(self.name, self.baseline)
        if any(value is not None and value < 1 for value in (self.patch, self.stride)):
            raise InputError("occlusion takes a patch and a stride of at least 1 pixel")
        if self.patch is not None and self.stride is not None and self.stride > self.patch:
            raise InputError("occlusion takes a stride of at most the patch, so that every pixel is covered")

    def passes(self, shape: tuple[int, int, int]) -> int:
        """Count the patches."""
        return len(self.windows(shape[1], shape[2]))

    def loop(self, asked: Asked) -> Maps:
        """Return maps (batch, height, width)."""
        size = asked.images.shape[2:]
        windows, blank = self.windows(*size), blank_images(asked.images, self.baseline)
        whole = asked.probabilities(asked.logits)[:, None]
        total, covered = np.zeros((len(asked.images), *size)), np.zeros(size)
        for part in asked.parts(len(windows)):
            cover = self.covers(windows[part], *size)
            falls = whole - asked.masked_scores(1 - cover, blank)
            total += np.tensordot(falls, cover.astype(np.float64), axes=1)
            covered += cover.sum(axis=0)
        return np.maximum(total / covered, 0).astype(np.float32)

    def windows(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Return the rows and columns of every patch."""
        patch = self.patch or max(1, min(height, width) // 4)
        stride = min(self.stride or max(1, patch // 2), patch)
        tops, lefts = (range(0, max(1, size - patch + stride), stride) for size in (height, width))
        return [(slice(top, top + patch), slice(left, left + patch)) for top in tops for left in lefts]

    def covers(self, windows: list[tuple[slice, slice]], height: int, width: int) -> np.ndarray:
        """Return masks that are 1 under each patch, float32 (patches, height, width)."""
        cover = np.zeros((len(windows), height, width), np.float32)
        for mask, (rows, columns) in zip(cover, windows, strict=True):
            mask[rows, columns] = 1
        return cover
