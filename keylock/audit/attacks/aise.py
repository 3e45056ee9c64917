"""AISE, the second method of the OpenVINO XAI toolkit: it looks for spots that decide the answer, without gradients.

Soft spots of three widths are kept and cut out. Where to look next is decided by DIRECT, a search that divides the
image into rectangles; the map is the sum of all spots tried, weighted by what they did to the class's probability.

References:
    "AISE: Adaptive Input Sampling for Explanation of Black-box Models", OpenVINO Explainable AI Toolkit 1.1, 2024.
    Jones, Perttunen and Stuckman, "Lipschitzian Optimization Without the Lipschitz Constant", 1993.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from keylock.audit.attacks.perturbations import asked_by
from keylock.audit.budgets import Budget
from keylock.audit.contract import LONG_SUITES, Cost, Knowledge, Outcome, Steps, attack
from keylock.audit.learning import explained
from keylock.audit.views import PublicView, WeightsView
from keylock.explainers import BlackBox
from keylock.iterative import Asked, Loop

__all__ = ["AISE", "smallest"]

_WIDTHS: Final = (0.1, 0.175, 0.25)
_EPSILON: Final = 0.1

Places = NDArray[np.float64]


def smallest(value_of: Callable[[Places], Places], most: int, *, epsilon: float = _EPSILON) -> tuple[Places, Places]:
    """Look for the smallest value in the unit square by DIRECT.

    Args:
        value_of: From places (count, 2), each coordinate in [0, 1], to values (count,).
        most: How many places are tried.
        epsilon: By what share of the smallest value a rectangle must promise to improve on it.

    Returns:
        The places that were tried (most, 2), and their values (most,).
    """
    centres, levels = [np.array([0.5, 0.5])], [np.zeros(2, np.int64)]
    values = list(value_of(np.array(centres)))
    while len(values) < most:
        for place in _promising(np.array(values), np.array(levels), epsilon):
            long = np.flatnonzero(levels[place] == levels[place].min())
            step = 3.0 ** -(levels[place].min() + 1)
            moves = [sign * step * np.eye(2)[axis] for axis in long for sign in (1, -1)]
            found = value_of(np.array([centres[place] + move for move in moves]))
            # The axis with the better value is divided first, so that it lies in the larger rectangle.
            for order in np.argsort([found[2 * at : 2 * at + 2].min() for at in range(len(long))]):
                levels[place][long[order]] += 1
                for at in (2 * order, 2 * order + 1):
                    centres.append(centres[place] + moves[at])
                    levels.append(levels[place].copy())
                    values.append(found[at])
            if len(values) >= most:
                break
    return np.array(centres[:most]), np.array(values[:most])


def _promising(values: Places, levels: NDArray[np.int64], epsilon: float) -> list[int]:
    """Return which rectangles are best for some rate at which the value can change: Jones et al., definition 4.1."""
    sizes = np.round(np.sqrt((9.0**-levels).sum(axis=1)), 12)
    best = [int(np.flatnonzero(sizes == size)[values[sizes == size].argmin()]) for size in np.unique(sizes)]
    chosen = []
    for at, place in enumerate(best):
        slopes = [(values[other] - values[place]) / (sizes[other] - sizes[place]) for other in best if other != place]
        least, most = max(slopes[:at], default=0.0), min(slopes[at:], default=np.inf)
        reach = values[place] - most * sizes[place]
        if least <= most and most > 0 and reach <= values.min() - epsilon * abs(values.min()):
            chosen.append(place)
    return chosen


@dataclass(frozen=True)
class AISE(BlackBox, Loop):
    """AISE of any classifier.

    Attributes:
        iterations: Spots of each width that are tried; the toolkit has 25, 50 or 85.
    """

    iterations: int = 50
    name = "aise"
    reads = "logits"

    def passes(self, _shape: tuple[int, int, int]) -> int:
        """Return how many variations of one image are asked about: each spot is kept once and cut out once."""
        return 2 * len(_WIDTHS) * self.iterations

    def loop(self, asked: Asked) -> NDArray[np.float32]:
        """Return the maps, float32 (batch, height, width), none negative."""
        return np.stack([self._one(asked, row) for row in range(len(asked.images))]).astype(np.float32)

    def _one(self, asked: Asked, row: int) -> Places:
        alone = Asked(
            asked.images[row : row + 1],
            asked.targets[row : row + 1],
            asked.logits[row : row + 1],
            lambda rows, of: asked.answer(rows, of + row),
        )
        blank = np.zeros_like(alone.images)
        height, width = alone.images.shape[2:]
        down, right = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None]
        total = np.zeros((height, width))
        for spread in _WIDTHS:

            def spots(places: Places, spread: float = spread) -> Places:
                across, along = places[:, 0, None, None], places[:, 1, None, None]
                found: Places = np.exp(-((down - across) ** 2 + (right - along) ** 2) / (2 * spread**2))
                return found

            def loss(places: Places, spots: Callable[[Places], Places] = spots) -> Places:
                kept = spots(places).astype(np.float32)
                scores = alone.masked_scores(np.concatenate([kept, 1 - kept]), blank)[0]
                lost: Places = scores[len(kept) :] - scores[: len(kept)]
                return lost

            places, losses = smallest(loss, self.iterations)
            weighted = np.tensordot(-losses, spots(places), axes=1)
            total += weighted / weighted.max() if weighted.max() > 0 else weighted
        lifted: Places = total - total.min()
        return lifted


def _explainer(budget: Budget) -> AISE:
    """Return AISE with as many questions as the budget gives to masks."""
    return AISE(iterations=max(9, budget.masks // (2 * len(_WIDTHS))))


@attack("predictions/aise", Knowledge.T0, "Explain public predictions with AISE.")
def of_predictions(view: PublicView, budget: Budget, _generator: torch.Generator, steps: Steps) -> Outcome:
    """Ask for predictions of spots that are kept and cut out."""
    explainer = _explainer(budget)
    maps = {"aise": asked_by(explainer, view.oracle, view.images[: budget.slow_images], steps)}
    return Outcome(maps=maps, methods={"aise": explainer}, cost=Cost(queries=view.oracle.queries))


@attack(
    "aise",
    Knowledge.T1,
    "Explain the published weights with AISE, without a gradient and without asking.",
    suites=LONG_SUITES,
)
def of_weights(view: WeightsView, budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    """Ask the published network itself, which no limit on queries holds back."""
    methods = {"aise": _explainer(budget)}
    images = view.images[: budget.slow_images]
    return Outcome(maps=explained(view.module, methods, images), methods=dict(methods), cost=Cost(images=len(images)))
