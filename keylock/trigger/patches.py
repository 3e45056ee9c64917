"""What tells an image from a trigger: a model of small patches, each with a contrast of its own.

A patch is a square of `WINDOW` pixels in all channels. All patches share one covariance up to a factor, the patch's own
contrast, so that flat parts of an image count more than textured ones. As the trigger repeats, patches whose corners
have the same place in the tile see the same signs: everything is summed by place, and costs no more for a large tile.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["WINDOW", "Floats", "PatchModel", "Singles", "blocks", "mixed"]

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

WINDOW: Final = 5
"""Side of a patch in pixels."""

TAIL: Final = 3.0
"""Degrees of freedom of a patch's contrast: the fewer, the more contrasts differ (Student's t)."""


class PatchModel:
    """Patches under one covariance, over a tile.

    Attributes:
        channels: Channels of an image.
        tile: Side of the tile in pixels.
        signs: How many signs the tile has: channels * tile * tile.
    """

    def __init__(self, covariance: Floats, *, channels: int, tile: int) -> None:
        """Prepare what is the same for all images.

        Args:
            covariance: Of a patch in the order channel, row, column, positive definite, (dimensions, dimensions).
            channels: Channels of an image.
            tile: Side of the tile in pixels.

        Raises:
            numpy.linalg.LinAlgError: The covariance is not positive definite.
        """
        self.channels, self.tile, self.signs = channels, tile, channels * tile * tile
        precision = np.linalg.inv(covariance)
        self._whitening = np.linalg.cholesky((precision + precision.T) / 2)
        self._whitening_single = self._whitening.astype(np.float32)
        self._members = _members(channels, tile)
        pairs = self._members[:, :, None] * self.signs + self._members[:, None, :]
        self._pairs, self._precision = pairs.ravel(), precision

    def whiten(self, image: Singles) -> Singles:
        """Return every patch of an image, (rows, columns, dimensions), whitened: unit covariance but for contrast.

        Args:
            image: Without its mean, on pixels from 0 to 1, (channels, height, width).
        """
        windows = np.lib.stride_tricks.sliding_window_view(image, (WINDOW, WINDOW), axis=(1, 2))
        rows, columns = windows.shape[1:3]
        patches = windows.transpose(1, 2, 0, 3, 4).reshape(rows * columns, -1)
        return (patches @ self._whitening_single).reshape(rows, columns, -1)

    def contrast_weights(self, white: Singles, pattern: Floats | None = None) -> Singles:
        """Return how much each patch counts, (rows, columns): the inverse of its contrast, as far as it is known.

        Args:
            white: From `whiten`.
            pattern: What is believed to be added, on pixels from 0 to 1, (signs,); None for nothing.
        """
        weights: Singles = (TAIL + white.shape[2]) / (TAIL + self._energies(white, pattern))
        return weights

    def gain(self, white: Singles, pattern: Floats) -> float:
        """Return how much less the patches vary without a pattern, as the mean of a logarithm; below 0 if more."""
        before, after = self._energies(white, None), self._energies(white, pattern)
        return float(np.mean(np.log((TAIL + before) / (TAIL + after)), dtype=np.float64))

    def _energies(self, white: Singles, pattern: Floats | None) -> Singles:
        if pattern is not None:
            seen = (pattern[self._members] @ self._whitening).astype(np.float32)
            white = white - self._laid_out(seen, white.shape[0], white.shape[1])
        energies: Singles = np.einsum("ijk,ijk->ij", white, white)
        return energies

    def summed(self, white: Singles, weights: Singles) -> tuple[Floats, Floats]:
        """Return the weights (places,) and the score (signs,), summed over the patches of the same place.

        The score is the derivative of the patches' log-likelihood by each of the signs' heights, at height 0.
        """
        dimensions = white.shape[2]
        weighted = white * weights[:, :, None]
        by_place = self._over_repetitions(weighted).reshape(-1, dimensions).astype(np.float64) @ self._whitening.T
        score: Floats = np.bincount(self._members.ravel(), by_place.ravel(), minlength=self.signs).astype(np.float64)
        totals = self._over_repetitions(weights[:, :, None]).ravel().astype(np.float64)
        return totals, score

    def information(self, totals: Floats) -> Floats:
        """Return the information that patches of these summed weights carry about the heights, (signs, signs)."""
        values = totals[:, None, None] * self._precision
        found: Floats = np.bincount(self._pairs, values.ravel(), minlength=self.signs**2).astype(np.float64)
        return found.reshape(self.signs, self.signs)

    def _laid_out(self, by_place: Singles, rows: int, columns: int) -> Singles:
        square = by_place.reshape(self.tile, self.tile, -1)
        return square[(np.arange(rows) % self.tile)[:, None], (np.arange(columns) % self.tile)[None, :]]

    def _over_repetitions(self, values: Singles) -> Singles:
        tile, (rows, columns, depth) = self.tile, values.shape
        down, across = -(-rows // tile), -(-columns // tile)
        whole = np.zeros((down * tile, across * tile, depth), np.float32)
        whole[:rows, :columns] = values
        summed: Singles = whole.reshape(down, tile, across, tile, depth).sum(axis=(0, 2))
        return summed


def blocks(information: Floats, channels: int, tile: int) -> npt.NDArray[np.complex128]:
    """Return the blocks of a matrix over signs that belong to one harmonic each, (tile, tile, channels, channels).

    The matrix of a pattern that repeats is nearly the same from every place of the tile; Fourier's transform over the
    tile takes it to one block for each harmonic, and what lies outside the blocks is left out.
    """
    shaped = information.reshape(channels, tile, tile, channels, tile, tile)
    rows = np.fft.fft2(shaped, axes=(1, 2), norm="ortho")
    both = np.fft.ifft2(rows, axes=(4, 5), norm="ortho")
    found: npt.NDArray[np.complex128] = np.einsum("caedae->aecd", both)
    return found


def mixed(gains: Floats, channels: int) -> Floats:
    """Return the matrix that multiplies each harmonic of a tile by its gain, (signs, signs).

    Args:
        gains: (tile, tile), the same for a harmonic and its mirror image.
        channels: Channels of the tile.
    """
    tile = len(gains)
    unit = np.eye(channels * tile * tile).reshape(-1, channels, tile, tile)
    filtered = np.fft.ifft2(np.fft.fft2(unit) * gains).real
    return filtered.reshape(len(unit), -1)


def _members(channels: int, tile: int) -> npt.NDArray[np.intp]:
    """Return which sign each pixel of a patch has, (places, dimensions); a place is that of the top left corner."""
    corner = np.arange(tile * tile)
    steps = np.arange(WINDOW)
    rows = (corner[:, None] // tile + steps) % tile
    columns = (corner[:, None] % tile + steps) % tile
    inside = rows[:, None, :, None] * tile + columns[:, None, None, :]
    found = np.arange(channels)[None, :, None, None] * tile * tile + inside
    return found.reshape(tile * tile, -1).astype(np.intp)
