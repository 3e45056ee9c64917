"""From images that carry a trigger to its signs, and to the next best signs, in order of likelihood."""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from keylock.crypto.secrecy import Opaque
from keylock.errors import InputError
from keylock.trigger.decoding import Belief, propagate
from keylock.trigger.patches import Floats, PatchModel, Singles, mixed
from keylock.trigger.searching import climb, losses_of, moves_of, next_best
from keylock.trigger.statistics import TriggerStatistics, pixels_of

__all__ = ["MAX_CANDIDATES", "MODEL_ERROR", "Reading", "check_strength", "read", "read_each"]

MAX_CANDIDATES: Final = 4096
"""More candidates are refused."""

_ROUNDS: Final = (6, 3)
"""Rounds of propagation after each estimate of the patches' contrasts."""

_CLIMBS: Final = 2
"""How often signs are climbed from, each time with contrasts that are estimated anew."""

MODEL_ERROR: Final = 0.15
"""Standard error of heights that no number of patches takes away: rounding, clipping, and the model itself."""

_LEAST_EVIDENCE: Final = 0.3
"""Test images without a trigger were at 0.11 at most, those with one at 1.3 at least: docs/trigger.md."""

_MOST_IMAGES: Final = 16
"""Of a larger batch as many images are read, evenly spaced: more of them add time and no certainty."""


class Reading(Opaque):
    """What was read: the most likely signs and how sure they are. As secret as the images it was read from.

    Attributes:
        shape: (channels, tile, tile).
        evidence: How much less the patches vary once the trigger that was read is taken off, as a mean logarithm.
            Above 0.3, the images most likely carry a trigger, this one or one that differs in a few signs.
    """

    __slots__ = ("_information", "_score", "_signs", "evidence", "shape")

    shape: tuple[int, int, int]
    evidence: float

    def __init__(
        self, signs: Floats, information: Floats, score: Floats, *, shape: tuple[int, int, int], evidence: float
    ) -> None:
        """Take the signs (signs,), and the likelihood of all others: `score @ s - s @ information @ s / 2`."""
        self._signs, self._information, self._score = signs, information, score
        self.shape, self.evidence = shape, float(evidence)

    @property
    def likely(self) -> bool:
        """Whether the images more likely carry a trigger than none; opening is worth a try."""
        return self.evidence > _LEAST_EVIDENCE

    def ratios(self) -> Floats:
        """Return the log-likelihood ratios of plus over minus, (channels, tile, tile).

        The size of each is the likelihood that is lost when the sign is turned, by itself or with its pixel.
        """
        moves = moves_of(*self.shape[:2])
        losses = losses_of(self._information, self._score, self._signs, moves)
        sizes = np.where(moves, np.maximum(losses, 0)[:, None], np.inf).min(axis=0)
        found: Floats = (self._signs * sizes).reshape(self.shape)
        return found

    def signs(self) -> npt.NDArray[np.int8]:
        """Return the most likely signs, -1 or 1, (channels, tile, tile)."""
        return self._signs.astype(np.int8).reshape(self.shape)

    def candidates(self, most: int = 256) -> Iterator[npt.NDArray[np.int8]]:
        """Yield signs in order of likelihood: the most likely first, then with the least reliable ones turned.

        Single signs are turned, and all signs of one pixel, up to six of these together; every set of turned signs
        comes once, in order of the likelihood that is lost. The second candidate costs some ten milliseconds, in which
        all are made; at most `most` are yielded, fewer only if there are no more.

        Args:
            most: How many at most, 1 to 4,096.

        Yields:
            New arrays of -1 and 1, (channels, tile, tile).

        Raises:
            InputError: `most` is out of range.

        References:
            Chase, "A class of algorithms for decoding block codes with channel measurement information", IEEE
            Trans. Information Theory 18, 1972.
        """
        if not 1 <= most <= MAX_CANDIDATES:
            raise InputError(f"a reading gives 1 to {MAX_CANDIDATES} candidates, not {most}")
        yield self.signs()
        if most == 1:
            return
        moves = moves_of(*self.shape[:2])
        masks, _ = next_best(self._information, self._score, self._signs, moves, most - 1)
        for turned in masks:
            yield np.where(turned, -self._signs, self._signs).astype(np.int8).reshape(self.shape)

    def __repr__(self) -> str:
        return f"Reading(shape={self.shape}, evidence={self.evidence:.4g})"


def read(images: npt.NDArray[np.float32], statistics: TriggerStatistics, *, strength: float) -> Reading:
    """Read the one trigger that all images of a batch carry.

    The more images, the surer: what they say is added up. Of more than 16, 16 are read. If they carry different
    triggers, nothing useful comes out; `read_each` reads each by itself.

    Args:
        images: Preprocessed, (batch, channels, height, width); as floating-point numbers, or clipped and rounded to 8
            bits before they were preprocessed.
        statistics: Those of the model's training images; others' do as well, a little less surely.
        strength: Height of the trigger on pixels from 0 to 1, above 0 and at most 1.

    Returns:
        What was read. It is the same for the same images, and of images without a trigger it opens nothing.

    Raises:
        TensorError: The images do not fit the statistics, or have values that are not finite.
        InputError: The strength is out of range.

    References:
        docs/trigger.md.
    """
    check_strength(strength)
    pixels = pixels_of(images, statistics, strength)
    chosen = pixels[np.arange(min(len(pixels), _MOST_IMAGES)) * len(pixels) // min(len(pixels), _MOST_IMAGES)]
    model = statistics.model
    narrowing = mixed(1 / np.sqrt(statistics.spread.astype(np.float64)), model.channels)
    whites = [model.whiten(image) for image in chosen]
    belief, pattern = Belief.none(model.signs), None
    for rounds in _ROUNDS:
        information, score = _observed(model, whites, pattern, narrowing, strength)
        belief = propagate(information, score, belief, rounds=rounds)
        pattern = strength * belief.expected
    moves = moves_of(model.channels, model.tile)
    signs = np.where(belief.ratios < 0, -1.0, 1.0)
    for _ in range(_CLIMBS):
        information, score = _observed(model, whites, pattern, narrowing, strength)
        signs = climb(information, score, signs, moves)
        pattern = strength * signs
    evidence = float(np.mean([model.gain(white, strength * signs) for white in whites]))
    return Reading(signs, information, score, shape=(model.channels, model.tile, model.tile), evidence=evidence)


def read_each(images: npt.NDArray[np.float32], statistics: TriggerStatistics, *, strength: float) -> list[Reading]:
    """Read each image of a batch by itself, as `read` does a batch of one.

    Args:
        images: As for `read`; each may carry another trigger, or none.
        statistics: As for `read`.
        strength: As for `read`.

    Returns:
        One reading for each image, in order.

    Raises:
        TensorError: As for `read`.
        InputError: As for `read`.
    """
    check_strength(strength)
    pixels_of(images, statistics, strength)
    return [read(images[row : row + 1], statistics, strength=strength) for row in range(len(images))]


def check_strength(strength: float) -> None:
    """Check the height of a trigger.

    Raises:
        InputError: It is not above 0 and at most 1.
    """
    if not (math.isfinite(strength) and 0 < strength <= 1):
        raise InputError(f"the strength of a trigger must be above 0 and at most 1 (8/255 is usual), not {strength}")


def _observed(
    model: PatchModel, whites: list[Singles], pattern: Floats | None, narrowing: Floats, strength: float
) -> tuple[Floats, Floats]:
    """Return information and score of the heights, in units of the strength, over all images."""
    total, summed = np.zeros((model.signs, model.signs)), np.zeros(model.signs)
    for white in whites:
        totals, score = model.summed(white, model.contrast_weights(white, pattern))
        information = model.information(totals) * strength**2
        # If patches were independent, errors had the covariance inverse(information). They are not, and it is wider.
        half = information @ narrowing @ np.linalg.solve(information, narrowing)
        total += half @ information
        summed += half @ (score * strength)
    covariance = np.linalg.inv((total + total.T) / 2)
    limited = np.linalg.inv((covariance + covariance.T) / 2 + MODEL_ERROR**2 * np.eye(model.signs))
    limited = (limited + limited.T) / 2
    return limited, limited @ (covariance @ summed)
