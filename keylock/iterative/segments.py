"""What LIME and KernelSHAP share: segments switched on and off, and a linear model fitted to the answers."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keylock.errors import InputError
from keylock.iterative.base import Asked, Images, Loop, Maps
from keylock.iterative.drawing import Source, source_of
from keylock.iterative.fills import Fill, blank_images, check_fill
from keylock.iterative.superpixels import SUPERPIXELS, grid_shape

__all__ = ["Patterns", "Scores", "SegmentLoop"]

Patterns = NDArray[np.int64]
"""Which segments are on (patterns, segments), of 0 and 1."""

Scores = Callable[[Patterns], NDArray[np.float64]]
"""From patterns to the probability of each image's class under each, float64 (batch, patterns)."""


@dataclass(frozen=True)
class SegmentLoop(Loop):
    """A linear model of the class's probability in the segments that are shown.

    All images have the same patterns of segments on and off. A segment's weight is shown at all its pixels; one that
    speaks against the class counts as no evidence: 0.

    Attributes:
        samples: Patterns to ask the classifier about.
        segments: Segments of an image, at most.
        superpixels: How images are cut: `slic` along colours, or `grid` into rectangles.
        baseline: What pixels of a segment become that is off; see `keylock.iterative.fills.Fill`.
        seed: Of the patterns.
    """

    samples: int = 512
    segments: int = 49
    superpixels: str = "slic"
    baseline: Fill = 0.0
    seed: int = 0
    reads = "logits"

    def __post_init__(self) -> None:
        check_fill(self.name, self.baseline)
        if self.superpixels not in SUPERPIXELS:
            known = " or ".join(map(repr, SUPERPIXELS))
            raise InputError(f"{self.name} takes superpixels {known}, not {self.superpixels!r}")
        if self.segments < 2 or self.samples < self.segments:
            raise InputError(f"{self.name} takes at least 2 segments and at least as many samples as segments")

    @abstractmethod
    def weigh(self, segments: int, scores: Scores, source: Source) -> NDArray[np.float64]:
        """Return the weight of each segment (batch, segments).

        Args:
            segments: How many there are.
            scores: Answers about patterns.
            source: Of the patterns.
        """

    def loop(self, asked: Asked) -> Maps:
        """Return maps (batch, height, width)."""
        numbers, segments = self.cut(asked.images)
        blank = blank_images(asked.images, self.baseline)

        def scores(patterns: Patterns) -> NDArray[np.float64]:
            shown = patterns.astype(np.float32)
            parts = [
                asked.masked_scores(shown[part][:, numbers].swapaxes(0, 1), blank) for part in asked.parts(len(shown))
            ]
            return np.concatenate(parts, axis=1)

        weights = self.weigh(segments, scores, source_of(self.seed))
        painted = np.take_along_axis(weights, numbers.reshape(len(numbers), -1), axis=1).reshape(numbers.shape)
        return np.maximum(painted, 0).astype(np.float32)

    def cut(self, images: Images) -> tuple[NDArray[np.int64], int]:
        """Return the number of each pixel's segment (batch, height, width), and how many numbers there are."""
        rows, columns = grid_shape(images.shape[2], images.shape[3], self.segments)
        return SUPERPIXELS[self.superpixels](images, self.segments), rows * columns
