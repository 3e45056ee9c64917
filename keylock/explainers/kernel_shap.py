"""KernelSHAP: Shapley values of the segments, by a weighted regression on the answers to coalitions of them."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from keylock.explainers.base import Classifier
from keylock.explainers.random_source import draws_from
from keylock.explainers.segment_models import SegmentModel, paint, pattern_scores

__all__ = ["KernelSHAP"]


@dataclass(frozen=True)
class KernelSHAP(SegmentModel):
    """KernelSHAP, whose values add up to the difference between the whole image and the blank one.

    Where `samples` suffice for every coalition, each is asked about once and the values are exact Shapley values.
    Otherwise coalitions are drawn by their kernel weight, each together with its complement.

    References:
        Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017, theorem 2. Covert and
        Lee, "Improving KernelSHAP: Practical Shapley Value Estimation via Linear Regression", AISTATS 2021, equation 7
        and section 4.2 (complements).
    """

    name = "kernel_shap"

    def maps_from(
        self, predict: Classifier, images: Tensor, targets: Tensor, *, generator: torch.Generator | None
    ) -> Tensor:
        """Return maps (batch, height, width)."""
        numbers, segments = self.cut(images)
        coalitions, weights = self.coalitions(segments, draws_from(generator, self.seed))
        ends = torch.tensor([[0], [1]]).expand(2, segments)
        patterns = torch.cat([ends, coalitions]).to(images.device)
        scores = pattern_scores(predict, images, targets, numbers=numbers, patterns=patterns, baseline=self.baseline)
        return paint(shapley_values(patterns[2:], weights.to(images.device), scores), numbers)

    def coalitions(self, segments: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return coalitions (count, segments), neither empty nor full, and their weights (count,), float64."""
        if 2**segments - 2 <= self.samples:
            rows = [row for row in itertools.product((0, 1), repeat=segments) if 0 < sum(row) < segments]
            coalitions = torch.tensor(rows)
            sizes = [sum(row) for row in rows]
            kernel = [(segments - 1) / (math.comb(segments, size) * size * (segments - size)) for size in sizes]
            return coalitions, torch.tensor(kernel, dtype=torch.float64)
        sizes_weights = torch.tensor([1 / (size * (segments - size)) for size in range(1, segments)])
        half = -(-self.samples // 2)
        sizes_drawn = 1 + torch.multinomial(
            sizes_weights.to(generator.device), half, replacement=True, generator=generator
        )
        order = torch.rand(half, segments, generator=generator, device=generator.device).argsort(dim=1).argsort(dim=1)
        drawn = (order < sizes_drawn.unsqueeze(1)).long()
        coalitions = torch.stack([drawn, 1 - drawn], dim=1).flatten(0, 1)[: self.samples]
        return coalitions, torch.ones(len(coalitions), dtype=torch.float64)


def shapley_values(coalitions: Tensor, weights: Tensor, scores: Tensor) -> Tensor:
    """Solve the weighted regression whose values add up to the whole difference: (batch, segments), float64.

    Args:
        coalitions: (count, segments) of 0 and 1.
        weights: Of the coalitions (count,).
        scores: (batch, 2 + count): of the blank image, of the whole image, of each coalition.
    """
    members = coalitions.double()
    blank, whole, seen = scores[:, :1], scores[:, 1:2], scores[:, 2:]
    inverse = torch.linalg.pinv(members.T @ (weights.unsqueeze(1) * members), hermitian=True)
    free = (seen - blank) * weights @ members @ inverse
    # The Lagrange multiplier of the constraint shifts the free solution along the inverse's row sums.
    sums = inverse.sum(dim=0)
    values: Tensor = free - (free.sum(dim=1, keepdim=True) - (whole - blank)) * sums / sums.sum()
    return values
