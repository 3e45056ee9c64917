"""Which rows of a batch carry a trigger that is known, and the rows without it: a matched filter."""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from keylock.crypto.secrecy import Opaque
from keylock.errors import InputError, TensorError
from keylock.trigger.patches import Singles, blocks
from keylock.trigger.reading import MODEL_ERROR, check_strength
from keylock.trigger.secret import check_signs
from keylock.trigger.statistics import TriggerStatistics, pixels_of

__all__ = ["Recogniser"]

DEFAULT_FALSE_POSITIVE_RATE: Final = 1e-9

_MOST_CONTESTED: Final = 1 / 24
"""Share of the signs that may fit better turned."""

Harmonics = npt.NDArray[np.complexfloating[Any, Any]]


class Recogniser(Opaque):
    """A matched filter for one trigger. It holds the trigger's signs, which are secret.

    A row carries the trigger if two things hold. Its match is at least the threshold: the match is the cosine between
    the signs and what the row says of them, times the square root of their number, and of an image that was made
    without knowing the signs it has at most the stated probability to be so large, whatever the image. And no more than
    one sign in 24 would fit better turned, so that a trigger that shares most signs is not taken for this one.

    Attributes:
        shape: (channels, height, width) of the images.
        false_positive_rate: Bound on the share of images without the trigger that are taken to carry it.
        threshold: The match that it takes.
    """

    __slots__ = ("_offset", "_precision", "_signs", "_statistics", "_strength", "false_positive_rate", "threshold")

    false_positive_rate: float
    threshold: float

    def __init__(
        self,
        signs: npt.ArrayLike,
        statistics: TriggerStatistics,
        *,
        strength: float,
        false_positive_rate: float = DEFAULT_FALSE_POSITIVE_RATE,
    ) -> None:
        """Prepare to recognise a trigger.

        Args:
            signs: -1 or 1, (channels, tile, tile), of the tile that the statistics are for.
            statistics: As for `read`.
            strength: Height of the trigger on pixels from 0 to 1, above 0 and at most 1.
            false_positive_rate: Above 0 and below 1; too small a rate for the number of signs is refused.

        Raises:
            TensorError: The signs have another shape than the statistics' tile, or other values.
            InputError: The strength or the rate is out of range.
        """
        check_strength(strength)
        array = check_signs(signs)
        expected = (statistics.shape[0], statistics.tile, statistics.tile)
        if array.shape != expected:
            raise TensorError(f"the statistics are for a trigger of the shape {expected}, not {array.shape}")
        least = math.exp(-array.size / 4)
        if not least <= false_positive_rate < 1:
            raise InputError(f"the false-positive rate must be {least:.1g} or more and below 1")
        self.false_positive_rate = float(false_positive_rate)
        self.threshold = math.sqrt(-2 * math.log(false_positive_rate))
        self._signs, self._statistics, self._strength = array.astype(np.float64).ravel(), statistics, float(strength)
        self._offset = _offset(array, statistics, strength)
        model = statistics.model
        even = model.information(np.full(model.tile**2, 1 / model.tile**2))
        self._precision = blocks(even, model.channels, model.tile)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return self._statistics.shape

    def recognise(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Tell which rows carry the trigger, boolean (batch,). The answer for a row depends on that row alone.

        Args:
            images: Preprocessed, (batch, channels, height, width).

        Raises:
            TensorError: The images do not fit the statistics, or have values that are not finite.
        """
        return np.array(
            [self._carries(image) for image in pixels_of(images, self._statistics, self._strength)], np.bool_
        )

    def matches(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the match of each row, (batch,): at most the square root of the number of signs.

        Raises:
            TensorError: As `recognise`.
        """
        model = self._statistics.model
        return np.array(
            [self._match(model.whiten(row)) for row in pixels_of(images, self._statistics, self._strength)], np.float64
        )

    def remove(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return images with the trigger taken off every row; the argument stays as it is.

        What clipping and rounding took from an image stays away.

        Args:
            images: Preprocessed, all with the trigger, (batch, channels, height, width).

        Raises:
            TensorError: As `recognise`.
        """
        pixels_of(images, self._statistics, self._strength)
        return np.asarray(images, np.float32) - self._offset

    def close(self) -> None:
        """Wipe the signs; nothing is recognised any more."""
        self._signs.fill(0)
        self._offset.fill(0)

    def _carries(self, pixels: Singles) -> bool:
        white = self._statistics.model.whiten(pixels)
        return self._match(white) >= self.threshold and self._contested(white) <= _MOST_CONTESTED * len(self._signs)

    def _match(self, white: Singles) -> float:
        # The weights must not depend on the signs, or the bound on false positives would not hold: Hoeffding's
        # inequality needs a direction that was chosen without them.
        estimated, covariance = self._estimated(white, None)
        gains = covariance + np.eye(len(self._statistics.std))
        wanted = self._spatial(np.linalg.solve(gains, estimated[..., None])[..., 0])
        length = float(np.linalg.norm(wanted))
        return float(self._signs @ wanted) / length if length else 0.0

    def _contested(self, white: Singles) -> int:
        """Return how many signs would fit better turned, each with all others as they are."""
        estimated, covariance = self._estimated(white, self._strength * self._signs)
        information = np.linalg.inv(covariance)
        rest = estimated - self._harmonics(self._signs)
        slopes = self._signs * self._spatial(np.einsum("abcd,abd->abc", information, rest))
        own = np.einsum("abcc->c", information).real / self._statistics.tile**2
        return int((slopes + np.repeat(own, self._statistics.tile**2) < 0).sum())

    def _estimated(self, white: Singles, pattern: npt.NDArray[np.float64] | None) -> tuple[Harmonics, Harmonics]:
        """Return the harmonics of the estimated heights and their covariance, in units of the strength."""
        model = self._statistics.model
        totals, score = model.summed(white, model.contrast_weights(white, pattern))
        information = self._precision * totals.sum()
        inverse = np.linalg.inv(information)
        heights: Harmonics = np.einsum("abcd,abd->abc", inverse, self._harmonics(score)) / self._strength
        spread = self._statistics.spread.astype(np.complex128) / self._strength**2
        covariance = inverse * spread[:, :, None, None]
        limit = MODEL_ERROR**2 * np.eye(len(self._statistics.std), dtype=np.complex128)
        return heights, covariance + limit

    def _harmonics(self, values: npt.NDArray[np.float64]) -> Harmonics:
        channels, tile = self._statistics.shape[0], self._statistics.tile
        return np.fft.fft2(values.reshape(channels, tile, tile), norm="ortho").transpose(1, 2, 0)

    def _spatial(self, harmonics: Harmonics) -> npt.NDArray[np.float64]:
        values: npt.NDArray[np.float64] = np.fft.ifft2(harmonics.transpose(2, 0, 1), norm="ortho").real.ravel()
        return values

    def __repr__(self) -> str:
        return f"Recogniser(shape={self.shape}, false_positive_rate={self.false_positive_rate:.3g})"


def _offset(signs: npt.NDArray[np.int8], statistics: TriggerStatistics, strength: float) -> npt.NDArray[np.float32]:
    """Return what the trigger adds to a preprocessed image; docs/key-derivation.md, section 3."""
    rows, columns = (np.arange(side) % statistics.tile for side in statistics.shape[1:])
    heights = strength / statistics.std.astype(np.float64)
    pattern = signs[:, rows[:, None], columns[None, :]] * heights[:, None, None]
    return pattern.astype(np.float32)
