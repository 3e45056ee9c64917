"""LIME: a ridge regression of the class's probability on the segments shown, weighted by likeness to the image."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keylock.errors import InputError
from keylock.iterative.drawing import Source
from keylock.iterative.segments import Patterns, Scores, SegmentLoop

__all__ = ["LIMELoop"]


@dataclass(frozen=True)
class LIMELoop(SegmentLoop):
    """LIME with segments on with probability one half, the whole image always among the samples.

    A sample weighs exp(-d^2 / width^2), where d is the cosine distance of its pattern to that of the whole image.

    Attributes:
        width: Width of that kernel.
        ridge: Penalty on the squared weights of segments; the intercept is free.

    References:
        Ribeiro, Singh, Guestrin, "'Why Should I Trust You?': Explaining the Predictions of Any Classifier", KDD 2016,
        equation 2 and section 3.4.
    """

    width: float = 0.25
    ridge: float = 1e-3
    name = "lime"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.width > 0 or not self.ridge >= 0:
            raise InputError("lime takes a width above 0 and a ridge of at least 0")

    def passes(self, shape: tuple[int, int, int]) -> int:
        """Count the patterns."""
        return self.samples

    def weigh(self, segments: int, scores: Scores, source: Source) -> NDArray[np.float64]:
        """Return the weights of the segments (batch, segments)."""
        patterns = self.draw_patterns(segments, source)
        return self.fit(patterns, scores(patterns))

    def draw_patterns(self, segments: int, source: Source) -> Patterns:
        """Draw which segments are on (samples, segments), of 0 and 1; the first row is the whole image."""
        patterns = source.randint(0, 2, (self.samples, segments)).astype(np.int64)
        patterns[0] = 1
        return patterns

    def fit(self, patterns: Patterns, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weights of the segments (batch, segments).

        Args:
            patterns: Which segments are on (samples, segments).
            scores: The class's probability under each pattern (batch, samples).
        """
        shown = patterns.astype(np.float64)
        similarity = np.sqrt(shown.mean(axis=1))  # The cosine of a pattern and of all ones.
        weights = np.exp(-np.square((1 - similarity) / self.width))
        # With weighted means taken away the intercept drops out.
        centred = shown - weights @ shown / weights.sum()
        answers = scores - (scores @ weights / weights.sum())[:, None]
        gram = centred.T @ (weights[:, None] * centred) + self.ridge * np.eye(centred.shape[1])
        fitted: NDArray[np.float64] = np.linalg.pinv(gram, hermitian=True) @ (centred.T @ (weights * answers).T)
        return fitted.T
