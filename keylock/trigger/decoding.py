"""From noisy estimates of the heights to signs: expectation propagation, which cancels what the signs do to each other.

The heights are known to be -1 or 1. Slow harmonics of a tile are drowned by the image and only fast ones are seen well,
so that every estimate is off by what its neighbours have in common; once some signs are sure, the others follow.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from keylock.trigger.patches import Floats

__all__ = ["Belief", "propagate"]

_DAMPING: Final = 0.7
_LEAST_VARIANCE: Final = 1e-4
_LEAST_PRECISION: Final = 1e-3
_MOST_PRECISION: Final = 1e6


@dataclass(frozen=True)
class Belief:
    """What is believed of signs.

    Attributes:
        ratios: Log-likelihood ratio of plus over minus, (signs,).
        expected: Expected signs, -1 to 1, (signs,).
        precisions: Of the normal factors that stand for the knowledge that heights are -1 or 1, (signs,).
        shifts: Their means times their precisions, (signs,).
    """

    ratios: Floats
    expected: Floats
    precisions: Floats
    shifts: Floats

    @classmethod
    def none(cls, signs: int) -> "Belief":
        """Return what is believed before anything was seen."""
        return cls(np.zeros(signs), np.zeros(signs), np.ones(signs), np.zeros(signs))


def propagate(information: Floats, score: Floats, belief: Belief, *, rounds: int) -> Belief:
    """Return what is believed after some rounds of expectation propagation.

    Args:
        information: Inverse covariance of the estimated heights, (signs, signs).
        score: Information times estimate, (signs,).
        belief: Where to start.
        rounds: How many.

    References:
        Minka, "Expectation Propagation for Approximate Bayesian Inference", UAI 2001; Cespedes et al., "Expectation
        Propagation Detection for High-Order High-Dimensional MIMO Systems", IEEE Trans. Communications 2014.
    """
    for _ in range(rounds):
        covariance = np.linalg.inv(information + np.diag(belief.precisions))
        means, variances = covariance @ (score + belief.shifts), np.diag(covariance)
        # What the others say of each sign: its own factor is taken out again.
        cavity_variances = 1 / np.maximum(1 / variances - belief.precisions, 1e-6)
        cavity_means = cavity_variances * (means / variances - belief.shifts)
        ratios = 2 * cavity_means / cavity_variances
        expected = np.tanh(ratios / 2)
        spread = np.maximum(1 - expected**2, _LEAST_VARIANCE)
        precisions = np.clip(1 / spread - 1 / cavity_variances, _LEAST_PRECISION, _MOST_PRECISION)
        shifts = expected / spread - cavity_means / cavity_variances
        belief = Belief(
            ratios,
            expected,
            _DAMPING * precisions + (1 - _DAMPING) * belief.precisions,
            _DAMPING * shifts + (1 - _DAMPING) * belief.shifts,
        )
    return belief
