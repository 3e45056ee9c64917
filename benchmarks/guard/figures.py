"""How close recovered maps come to true ones, beside what the same procedure finds in answers that tell nothing.

An attacker is credited with the best of several truths and of all ways to make a map. Of few pictures the best of many
is above chance whatever they are, so the same is done with answers that were shuffled among the copies of a picture.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keylock.audit.answered import Answer
from keylock.audit.copies import FITS, Copied, standardised
from keylock.audit.scoring import similarity_to
from keylock.evaluation import estimate_mean
from keylock.locking.losses import is_constant

_SHUFFLES = 100
_UPPER = 0.975

Numbers = NDArray[np.float64]


class Truths:
    """The true maps that recovered ones are held against.

    Attributes:
        maps: True maps (pictures, h, w) by name.
        chance: How alike the true maps of two different pictures are, by name.
    """

    def __init__(self, maps: Mapping[str, Tensor]) -> None:
        self.maps = maps
        self._told = {name: ~is_constant(truth) for name, truth in maps.items()}
        self.chance = {
            name: float(similarity_to(truth.roll(1, dims=0), truth)[0][self._told[name]].mean())
            for name, truth in maps.items()
        }

    def excess(self, name: str, recovered: Tensor) -> Tensor:
        """Return by how much recovered maps (pictures, h, w) are more like the truth than chance (pictures,).

        Pictures whose true map is constant are left out.
        """
        return similarity_to(recovered, self.maps[name])[0][self._told[name]] - self.chance[name]


def recovered_by(copied: Sequence[Copied], truths: Truths, generator: np.random.Generator) -> dict[str, Any]:
    """Return the figures of an attacker.

    Args:
        copied: What was answered about the copies of each picture.
        truths: True maps of the same pictures.
        generator: Shuffles answers.
    """
    answers = [_Linear.of(one) for one in copied]
    pairs = list(product(FITS, truths.maps))

    def excess_of(maps: Mapping[str, Tensor]) -> list[Tensor]:
        return [truths.excess(name, maps[fit]) for fit, name in pairs]

    found = excess_of(_maps(answers))
    best = max(range(len(pairs)), key=lambda place: float(found[place].mean()))
    mean, low, high = estimate_mean(found[best])
    shuffled = [
        max(float(excess.mean()) for excess in excess_of(_maps([one.shuffled(generator) for one in answers])))
        for _ in range(_SHUFFLES)
    ]
    fit, name = pairs[best]
    kinds = np.stack([one.kinds for one in copied])
    return {
        "scores": round(float((kinds == Answer.SCORES).sum(axis=1).mean()), 1),
        "labels": round(float((kinds == Answer.LABEL).sum(axis=1).mean()), 1),
        "copies": kinds.shape[1],
        "pcc": round(mean + truths.chance[name], 3),
        "chance": round(truths.chance[name], 3),
        "excess": [round(value, 3) for value in (mean, low, high)],
        "null": [round(float(np.mean(shuffled)), 3), round(float(np.quantile(shuffled, _UPPER)), 3)],
        "truth": name,
        "map": fit,
    }


class _Linear:
    """The answers about a picture, and what each adds to the map by every way to make one."""

    def __init__(self, scores: Numbers, weights: Mapping[str, Numbers], shape: tuple[int, ...]) -> None:
        self.scores, self.weights, self.shape = scores, weights, shape

    @classmethod
    def of(cls, one: Copied) -> "_Linear":
        scores = standardised(one.answers, one.kinds)
        known = np.isfinite(scores)
        shown = one.masks[known].reshape(int(known.sum()), one.masks[0].size).astype(np.float64)
        weights = {name: make(shown) if len(shown) else shown for name, make in FITS.items()}
        return cls(scores[known], weights, one.masks.shape[1:])

    def shuffled(self, generator: np.random.Generator) -> "_Linear":
        return _Linear(generator.permutation(self.scores), self.weights, self.shape)

    def map_by(self, fit: str) -> Numbers:
        found: Numbers = (self.scores @ self.weights[fit]).reshape(self.shape)
        return found


def _maps(answers: Sequence[_Linear]) -> dict[str, Tensor]:
    return {fit: torch.from_numpy(np.stack([one.map_by(fit) for one in answers])).float() for fit in FITS}
