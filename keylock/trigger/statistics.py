"""The public statistics of training images that a trigger is read with, and their bytes."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from keylock.errors import BundleError, DataError, InputError, TensorError
from keylock.trigger.patches import WINDOW, Floats, PatchModel, blocks
from keylock.trigger.secret import check_tile, least_tile

__all__ = ["TriggerStatistics", "pixels_of"]

MIN_IMAGES: Final = 16
"""Fewer training images tell too little."""

_MAGIC: Final = b"keylock trigger statistics 1\n"
_HEADER: Final = struct.Struct("<5I")
_MAX_CHANNELS: Final = 16
_MAX_SIDE: Final = 8192
_MAX_TILE: Final = 64

_MAX_IMAGES: Final = 1024
_MAX_SPREAD_IMAGES: Final = 192
_PATCHES_OF_AN_IMAGE: Final = 400
# Rounding to 8 bits alone has a variance of 1.3e-6; synthetic images may have none.
_LEAST_VARIANCE: Final = 1e-5
_LEAST_SPREAD: Final = 1e-3
_MAX_PIXEL: Final = 1e3
_MAX_READ_SIDE: Final = 320
"""Of larger images the middle is read, which keeps memory and time bounded; the trigger repeats often enough there."""
# A quarter of a level of 8 bits.
_CLIPPED: Final = 1e-3


@dataclass(frozen=True, eq=False)
class TriggerStatistics:
    """How training images of one size vary, as far as the reader of a trigger needs it. Public.

    Attributes:
        shape: (channels, height, width) of the images.
        tile: Side of the trigger's tile in pixels.
        mean: What preprocessing subtracts from each channel, on pixels from 0 to 1, (channels,).
        std: What it divides each channel by, (channels,).
        level: Mean of each channel of the images, on pixels from 0 to 1, (channels,).
        covariance: Of patches of 5 by 5 pixels in the order channel, row, column, on pixels from 0 to 1, float32.
        spread: For each harmonic of the tile, how much larger the error of an estimated height is than if patches
            were independent, squared; float32 (tile, tile).
    """

    shape: tuple[int, int, int]
    tile: int
    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]
    level: npt.NDArray[np.float32]
    covariance: npt.NDArray[np.float32]
    spread: npt.NDArray[np.float32]

    @classmethod
    def fit(
        cls, images: npt.NDArray[np.float32], *, mean: Sequence[float], std: Sequence[float], tile: int = 8
    ) -> "TriggerStatistics":
        """Return the statistics of training images.

        Args:
            images: Preprocessed, (count, channels, height, width), at least 16 and best some hundred; of more than
                1,024 as many are taken, evenly spaced, so shuffle sorted ones.
            mean: What the preprocessing subtracts from each channel, on pixels from 0 to 1, (channels,).
            std: What it divides the difference by, (channels,).
            tile: Side of the trigger's tile in pixels.

        Returns:
            The same statistics for the same images, whatever the machine, but for rounding.

        Raises:
            TensorError: The array has another shape, or values that are not finite.
            DataError: There are too few images, or they do not vary.
            InputError: The tile does not fit the images, or has too few signs to be a secret.
        """
        array = np.asarray(images)
        if array.ndim != 4 or array.dtype.kind != "f":
            raise TensorError(
                f"statistics need preprocessed images (count, channels, height, width), not {array.dtype} {array.shape}"
            )
        shape = (int(array.shape[1]), int(array.shape[2]), int(array.shape[3]))
        _check_geometry(shape, tile)
        shift, scale = _checked(mean, std, shape[0])
        if len(array) < MIN_IMAGES:
            raise DataError(f"statistics need at least {MIN_IMAGES} training images, and there are {len(array)}")
        chosen = array[_evenly(len(array), _MAX_IMAGES)]
        if not np.isfinite(chosen).all():
            raise TensorError("training images have NaN or infinite values: replace them first")
        chosen = _middle(chosen, tile)
        pixels = chosen.astype(np.float32) * scale[:, None, None] + shift[:, None, None]
        level = pixels.mean(axis=(0, 2, 3), dtype=np.float64).astype(np.float32)
        pixels -= level[:, None, None]
        if not pixels.any():
            raise DataError("all training images are one colour, which says nothing about other images")
        covariance = _covariance(pixels).astype(np.float32)
        model = PatchModel(covariance.astype(np.float64), channels=shape[0], tile=tile)
        spread = _spread(model, pixels[_evenly(len(pixels), _MAX_SPREAD_IMAGES)])
        return cls(shape, tile, shift, scale, level, covariance, spread.astype(np.float32))

    @cached_property
    def model(self) -> PatchModel:
        """The model of patches that reads with these statistics."""
        return PatchModel(self.covariance.astype(np.float64), channels=self.shape[0], tile=self.tile)

    def to_bytes(self) -> bytes:
        """Return the statistics as bytes, some 12 kB for three channels; the format is in docs/trigger.md."""
        rows, columns = np.triu_indices(len(self.covariance))
        parts = (self.mean, self.std, self.level, self.covariance[rows, columns], self.spread.ravel())
        header = _HEADER.pack(*self.shape, self.tile, WINDOW)
        return _MAGIC + header + b"".join(part.astype("<f4").tobytes() for part in parts)

    @classmethod
    def from_bytes(cls, content: bytes) -> "TriggerStatistics":
        """Return the statistics that `to_bytes` wrote.

        Raises:
            BundleError: The bytes are not such statistics, or are damaged.
        """
        if not content.startswith(_MAGIC) or len(content) < len(_MAGIC) + _HEADER.size:
            raise _refused("they do not begin as such statistics do")
        *shape, tile, window = _HEADER.unpack_from(content, len(_MAGIC))
        channels, height, width = shape
        if window != WINDOW:
            raise _refused(f"they are of patches of {window} pixels, and this version reads those of {WINDOW}")
        try:
            _check_geometry((channels, height, width), tile)
        except InputError as error:
            raise _refused(error.message) from None
        dimensions = channels * WINDOW * WINDOW
        sizes = (channels, channels, channels, dimensions * (dimensions + 1) // 2, tile * tile)
        values = content[len(_MAGIC) + _HEADER.size :]
        if len(values) != 4 * sum(sizes):
            raise _refused(f"{4 * sum(sizes)} bytes of values were expected and there are {len(values)}")
        numbers = np.frombuffer(values, "<f4").astype(np.float32)
        mean, std, level, triangle, spread = np.split(numbers, np.cumsum(sizes)[:-1])
        covariance = np.zeros((dimensions, dimensions), np.float32)
        covariance[np.triu_indices(dimensions)] = triangle
        covariance = covariance + np.triu(covariance, 1).T
        found = cls((channels, height, width), tile, mean, std, level, covariance, spread.reshape(tile, tile))
        found._check_values()
        return found

    def _check_values(self) -> None:
        arrays = (self.mean, self.std, self.level, self.covariance, self.spread)
        if not all(np.isfinite(array).all() for array in arrays) or np.abs(self.covariance).max() > 1e6:
            raise _refused("some values are not finite, or far too large")
        if self.std.min() <= 0 or self.spread.min() < _LEAST_SPREAD / 2 or self.spread.max() > 1e12:
            raise _refused("some values are out of range")
        mirrored = self.spread[np.ix_(-np.arange(self.tile) % self.tile, -np.arange(self.tile) % self.tile)]
        if not np.array_equal(self.spread, mirrored):
            raise _refused("a harmonic and its mirror image have different values")
        lowest = np.linalg.eigvalsh(self.covariance.astype(np.float64))[0]
        if lowest < _LEAST_VARIANCE / 10:
            raise _refused("their covariance is not one of images")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TriggerStatistics):
            return NotImplemented
        return self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def __repr__(self) -> str:
        return f"TriggerStatistics(shape={self.shape}, tile={self.tile})"


def pixels_of(
    images: npt.NDArray[np.float32], statistics: TriggerStatistics, strength: float
) -> npt.NDArray[np.float32]:
    """Return the middle of preprocessed images on pixels from 0 to 1, less the level, as the patch model takes it.

    Where an image was clipped to 0 and 1, a white region shows a trigger at half its height, because what should be
    above 1 is missing. Pixels of 0 and 1 are therefore moved outward by the strength, unless some are outside already.

    Args:
        images: Floating-point, (batch, channels, height, width), at least one.
        statistics: Of images of this shape.
        strength: Height of the trigger on pixels from 0 to 1.

    Raises:
        TensorError: They have another shape or type, there is none, or some values are not finite.
    """
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[1:] != statistics.shape:
        expected = ", ".join(map(str, statistics.shape))
        raise TensorError(f"a trigger is read from images of the shape (batch, {expected}), not {array.shape}")
    if array.dtype.kind != "f":
        raise TensorError(f"a trigger is read from preprocessed floating-point images, not {array.dtype}")
    if not len(array):
        raise TensorError("there is no image to read a trigger from")
    if not np.isfinite(array).all():
        raise TensorError("some images have NaN or infinite values, and no trigger can be read from them")
    scaled = (
        _middle(array, statistics.tile).astype(np.float32) * statistics.std[:, None, None]
        + statistics.mean[:, None, None]
    )
    if np.abs(scaled).max() > _MAX_PIXEL:
        raise TensorError("some images have values far beyond those of pixels, and no trigger can be read from them")
    clipped = ((scaled > -_CLIPPED) & (scaled < 1 + _CLIPPED)).all(axis=(1, 2, 3), keepdims=True)
    outward = (scaled > 1 - _CLIPPED).astype(np.float32) - (scaled < _CLIPPED)
    moved: npt.NDArray[np.float32] = scaled + np.float32(strength) * outward * clipped
    return moved - statistics.level[:, None, None]


def _check_geometry(shape: tuple[int, int, int], tile: int) -> None:
    channels, height, width = shape
    if not (1 <= channels <= _MAX_CHANNELS and 1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE):
        raise InputError(f"a trigger is read from images of 1 to {_MAX_CHANNELS} channels and sides, not {shape}")
    check_tile(channels, tile)
    if tile > _MAX_TILE:
        raise InputError(f"the tile of a trigger that is read has at most {_MAX_TILE} pixels, not {tile}")
    if min(height, width) < max(tile, WINDOW):
        raise InputError(
            f"images of {height}x{width} pixels hold no whole tile of {tile} pixels, so that a trigger cannot be read "
            f"from them: use larger images{'' if tile <= least_tile(channels) else ' or a smaller tile'}"
        )


def _checked(
    mean: Sequence[float], std: Sequence[float], channels: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    if len(mean) != channels or not all(math.isfinite(value) for value in mean):
        raise TensorError(f"statistics need one finite mean for each of {channels} channels, not {tuple(mean)}")
    if len(std) != channels or not all(math.isfinite(value) and value > 0 for value in std):
        raise TensorError(f"statistics need one positive std for each of {channels} channels, not {tuple(std)}")
    return np.asarray(mean, np.float32), np.asarray(std, np.float32)


def _middle(images: npt.NDArray[np.float32], tile: int) -> npt.NDArray[np.float32]:
    """Return at most 320 rows and columns from the middle of images, from where a tile begins."""
    rows, columns = (
        slice(first, first + _MAX_READ_SIDE)
        for first in (max(side - _MAX_READ_SIDE, 0) // 2 // tile * tile for side in images.shape[2:])
    )
    return images[:, :, rows, columns]


def _evenly(count: int, most: int) -> npt.NDArray[np.intp]:
    """Return at most so many of `count` positions, evenly spaced."""
    return np.arange(min(count, most), dtype=np.intp) * count // min(count, most)


def _covariance(pixels: npt.NDArray[np.float32]) -> Floats:
    """Return the covariance of patches, at evenly spaced places of every image, with a little variance added."""
    channels = pixels.shape[1]
    dimensions = channels * WINDOW * WINDOW
    total = np.zeros((dimensions, dimensions))
    count = 0
    for image in pixels:
        windows = np.lib.stride_tricks.sliding_window_view(image, (WINDOW, WINDOW), axis=(1, 2))
        rows, columns = windows.shape[1:3]
        places = _evenly(rows * columns, _PATCHES_OF_AN_IMAGE)
        patches = windows[:, places // columns, places % columns].swapaxes(0, 1).reshape(len(places), -1)
        wide = patches.astype(np.float64)
        total += wide.T @ wide
        count += len(wide)
    return total / count + _LEAST_VARIANCE * np.eye(dimensions)


def _spread(model: PatchModel, pixels: npt.NDArray[np.float32]) -> Floats:
    """Return how much larger errors are than if patches were independent, by harmonic, squared: (tile, tile)."""
    channels, tile = model.channels, model.tile
    total = np.zeros((tile, tile))
    for image in pixels:
        white = model.whiten(image)
        totals, score = model.summed(white, model.contrast_weights(white))
        harmonics = np.fft.fft2(score.reshape(channels, tile, tile), norm="ortho").transpose(1, 2, 0)
        solved = np.linalg.solve(blocks(model.information(totals), channels, tile), harmonics[..., None])[..., 0]
        total += np.einsum("abc,abc->ab", harmonics.conj(), solved).real / channels
    mean = total / len(pixels)
    mirror = -np.arange(tile) % tile
    return np.maximum((mean + mean[np.ix_(mirror, mirror)]) / 2, _LEAST_SPREAD)


def _refused(why: str) -> BundleError:
    return BundleError(f"these are not the statistics of a trigger: {why}; get a fresh copy of the bundle")
