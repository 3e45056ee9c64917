"""KernelSHAP: Shapley values of the segments, by a weighted regression on the answers to coalitions of them."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keylock.iterative.drawing import Source
from keylock.iterative.segments import Patterns, Scores, SegmentLoop

__all__ = ["KernelSHAPLoop"]


@dataclass(frozen=True)
class KernelSHAPLoop(SegmentLoop):
    """KernelSHAP, whose values add up to the difference between the whole image and the blank one.

    Where `samples` suffice for every coalition, each is asked about once and the values are exact Shapley values.
    Otherwise coalitions are drawn by their kernel weight, each together with its complement.

    References:
        Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017, theorem 2. Covert and
        Lee, "Improving KernelSHAP: Practical Shapley Value Estimation via Linear Regression", AISTATS 2021, equation 7
        and section 4.2 (complements).
    """

    name = "kernel_shap"

    def passes(self, shape: tuple[int, int, int]) -> int:
        """Count the coalitions at most, with the empty and the full one."""
        return self.samples + 2

    def weigh(self, segments: int, scores: Scores, source: Source) -> NDArray[np.float64]:
        """Return the values of the segments (batch, segments)."""
        coalitions, weights = self.coalitions(segments, source)
        ends = np.repeat(np.array([[0], [1]]), segments, axis=1)
        return shapley_values(coalitions, weights, scores(np.concatenate([ends, coalitions])))

    def coalitions(self, segments: int, source: Source) -> tuple[Patterns, NDArray[np.float64]]:
        """Return coalitions (count, segments), neither empty nor full, and their weights (count,)."""
        if 2**segments - 2 <= self.samples:
            rows = [row for row in itertools.product((0, 1), repeat=segments) if 0 < sum(row) < segments]
            sizes = [sum(row) for row in rows]
            kernel = [(segments - 1) / (math.comb(segments, size) * size * (segments - size)) for size in sizes]
            return np.array(rows, np.int64), np.array(kernel)
        shares = np.array([1 / (size * (segments - size)) for size in range(1, segments)])
        half = -(-self.samples // 2)
        drawn_sizes = source.choice(np.arange(1, segments), half, p=shares / shares.sum())
        order = source.random_sample((half, segments)).argsort(axis=1).argsort(axis=1)
        drawn = (order < drawn_sizes[:, None]).astype(np.int64)
        coalitions = np.stack([drawn, 1 - drawn], axis=1).reshape(-1, segments)[: self.samples]
        return coalitions, np.ones(len(coalitions))


def shapley_values(
    coalitions: Patterns, weights: NDArray[np.float64], scores: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Solve the weighted regression whose values add up to the whole difference: (batch, segments).

    Args:
        coalitions: (count, segments) of 0 and 1.
        weights: Of the coalitions (count,).
        scores: (batch, 2 + count): of the blank image, of the whole image, of each coalition.
    """
    members = coalitions.astype(np.float64)
    blank, whole, seen = scores[:, :1], scores[:, 1:2], scores[:, 2:]
    inverse = np.linalg.pinv(members.T @ (weights[:, None] * members), hermitian=True)
    free = (seen - blank) * weights @ members @ inverse
    # The Lagrange multiplier of the constraint shifts the free solution along the inverse's row sums.
    sums = inverse.sum(axis=0)
    values: NDArray[np.float64] = free - (free.sum(axis=1, keepdims=True) - (whole - blank)) * sums / sums.sum()
    return values
