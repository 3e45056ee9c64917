"""LIME: a ridge regression of the class's probability on the segments shown, weighted by likeness to the image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from keylock.errors import InputError
from keylock.explainers.base import Classifier
from keylock.explainers.random_source import draws_from
from keylock.explainers.segment_models import SegmentModel, paint, pattern_scores

__all__ = ["LIME"]


@dataclass(frozen=True)
class LIME(SegmentModel):
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

    def maps_from(
        self, predict: Classifier, images: Tensor, targets: Tensor, *, generator: torch.Generator | None
    ) -> Tensor:
        """Return maps (batch, height, width)."""
        numbers, segments = self.cut(images)
        patterns = self.draw_patterns(segments, draws_from(generator, self.seed)).to(images.device)
        scores = pattern_scores(predict, images, targets, numbers=numbers, patterns=patterns, baseline=self.baseline)
        return paint(self.fit(patterns, scores), numbers)

    def draw_patterns(self, segments: int, generator: torch.Generator) -> Tensor:
        """Draw which segments are on (samples, segments), of 0 and 1; the first row is the whole image."""
        patterns = torch.randint(0, 2, (self.samples, segments), generator=generator, device=generator.device)
        patterns[0] = 1
        return patterns

    def fit(self, patterns: Tensor, scores: Tensor) -> Tensor:
        """Return the weights of the segments (batch, segments), float64.

        Args:
            patterns: Which segments are on (samples, segments).
            scores: The class's probability under each pattern (batch, samples).
        """
        shown = patterns.double()
        similarity = (shown.mean(dim=1)).sqrt()  # The cosine of a pattern and of all ones.
        weights = torch.exp(-((1 - similarity) ** 2) / self.width**2)
        # With weighted means taken away the intercept drops out.
        centred = shown - weights @ shown / weights.sum()
        targets = scores.double() - (scores.double() @ weights / weights.sum()).unsqueeze(1)
        gram = centred.T @ (weights.unsqueeze(1) * centred)
        gram = gram + self.ridge * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
        fitted: Tensor = torch.linalg.pinv(gram, hermitian=True) @ (centred.T @ (weights * targets).T)
        return fitted.T
