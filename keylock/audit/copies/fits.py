"""From answers about masked copies to a map, whatever was not answered.

Attackers who get few answers make the most of them by a regression on the masks. With many it is what LIME and
KernelSHAP fit, and what RISE and occlusion average.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keylock.audit.copies.masks import Masks

__all__ = ["FITS", "fit_map", "standardised"]

_RIDGE: Final = 1e-2
_LEAST_SPREAD: Final = 1e-12

Numbers = NDArray[np.float64]
Kinds = NDArray[np.int64]


def _fitted(masks: Numbers) -> Numbers:
    """Weigh answers so that the map explains them best, with a penalty on its size (ridge regression)."""
    shown = masks - masks.mean(axis=0)
    gram = shown @ shown.T / shown.shape[1]
    found: Numbers = np.linalg.solve(gram + _RIDGE * np.eye(len(gram)), shown)
    return found


def _averaged(masks: Numbers) -> Numbers:
    """Weigh the masks by their answers, as RISE does."""
    return masks


FITS: Final[dict[str, Callable[[Numbers], Numbers]]] = {"fitted": _fitted, "averaged": _averaged}
"""By name, from masks (copies, pixels) to what each answer adds to the map (copies, pixels)."""


def fit_map(fit: str, masks: Masks, answers: Numbers, kinds: Kinds) -> Numbers:
    """Return the map (height, width) that answers about copies make; flat where they tell nothing.

    Args:
        fit: A name in `FITS`.
        masks: What was covered (copies, height, width).
        answers: How much each copy was taken for the picture's class (copies,); nan where it was not answered.
        kinds: Of which kind each answer is (copies,).
    """
    scores = standardised(answers, kinds)
    known = np.isfinite(scores)
    if not known.any():
        return np.zeros(masks.shape[1:])
    shown = masks[known].reshape(int(known.sum()), -1).astype(np.float64)
    return (scores[known] @ FITS[fit](shown)).reshape(masks.shape[1:])


def standardised(answers: Numbers, kinds: Kinds) -> Numbers:
    """Return answers (copies,) of which each kind has mean 0 and standard deviation 1; nan where they tell nothing.

    Scores and labels are of different scales, and a map of both needs one.
    """
    scores = np.full_like(answers, np.nan)
    for kind in np.unique(kinds):
        rows = (kinds == kind) & np.isfinite(answers)
        if rows.any() and (spread := answers[rows].std()) > _LEAST_SPREAD:
            scores[rows] = (answers[rows] - answers[rows].mean()) / spread
    return scores
