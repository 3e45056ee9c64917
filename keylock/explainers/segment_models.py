"""What LIME and KernelSHAP share: segments switched on and off, and a linear model fitted to the answers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from keylock.explainers.base import Classifier, FromPredictions
from keylock.explainers.predictions import Fill, blank_images, check_fill, chunks, masked_scores
from keylock.explainers.superpixels import SUPERPIXELS, check_segments, grid_shape

__all__ = ["SegmentModel", "paint", "pattern_scores"]


@dataclass(frozen=True)
class SegmentModel(FromPredictions):
    """A linear model of the class's probability in the segments that are shown.

    All images of a batch have the same patterns of segments on and off. A segment's weight is shown at all its pixels;
    one that speaks against the class counts as no evidence: 0.

    Attributes:
        samples: Patterns to ask the classifier about.
        segments: Segments of an image, at most.
        superpixels: How images are cut: `slic` along colours, or `grid` into rectangles.
        baseline: What pixels of a segment become that is off; see `keylock.explainers.predictions.Fill`.
        seed: Of the patterns, where no generator is given.
    """

    samples: int = 512
    segments: int = 49
    superpixels: str = "slic"
    baseline: Fill = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_fill(self.name, self.baseline)
        check_segments(self.name, method=self.superpixels, count=self.segments, samples=self.samples)

    def cut(self, images: Tensor) -> tuple[Tensor, int]:
        """Return the number of each pixel's segment (batch, height, width), int64, and how many numbers there are."""
        rows, columns = grid_shape(images.shape[2], images.shape[3], self.segments)
        return SUPERPIXELS[self.superpixels](images, self.segments), rows * columns


def pattern_scores(
    predict: Classifier, images: Tensor, targets: Tensor, *, numbers: Tensor, patterns: Tensor, baseline: Fill
) -> Tensor:
    """Return the probability of each image's target class under each pattern (batch, patterns), float64.

    Args:
        predict: From preprocessed images to logits.
        images: Preprocessed images (batch, channels, height, width).
        targets: Class indices (batch,).
        numbers: Each pixel's segment (batch, height, width).
        patterns: Which segments are on (patterns, segments), of 0 and 1.
        baseline: What pixels of the others become.
    """
    blank = blank_images(images, baseline)
    # (patterns, batch, height, width), brought to the front of the images.
    parts = [
        masked_scores(predict, images, targets, patterns[part][:, numbers].transpose(0, 1), blank)
        for part in chunks(len(patterns), len(images))
    ]
    return torch.cat(parts, dim=1)


def paint(weights: Tensor, numbers: Tensor) -> Tensor:
    """Give every pixel the positive part of its segment's weight: (batch, segments) to maps (batch, height, width)."""
    return weights.gather(1, numbers.flatten(1)).view(numbers.shape).clamp_min(0).float()
