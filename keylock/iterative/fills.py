"""What takes the place of the parts of an image that are masked."""

import numpy as np

from keylock.errors import InputError
from keylock.iterative.base import Images

__all__ = ["Fill", "blank_images", "blur_side", "check_fill"]

Fill = float | str | tuple[float, ...]
"""What masked pixels become: a value after preprocessing, one for each channel, `mean` (of the image) or `blur`."""


def check_fill(name: str, fill: Fill) -> None:
    """Check a fill.

    Raises:
        InputError: It is neither a number, nor numbers for the channels, nor a known word.
    """
    if isinstance(fill, str) and fill not in {"mean", "blur"}:
        raise InputError(
            f"{name} fills masked pixels with a number, one for each channel, 'mean' or 'blur': not {fill!r}"
        )


def blur_side(height: int, width: int) -> int:
    """Return the side of the box that `blur` averages over: two passes of it leave no detail, and no hard edges."""
    return 2 * (min(height, width) // 8) + 1


def blank_images(images: Images, fill: Fill) -> Images:
    """Return what shows where images (batch, channels, height, width) are masked, in their shape.

    Raises:
        InputError: There is not one value for each channel.
    """
    if fill == "mean":
        return np.broadcast_to(images.mean(axis=(2, 3), keepdims=True), images.shape)
    if fill == "blur":
        side = blur_side(images.shape[2], images.shape[3])
        blurred = images.astype(np.float64)
        for _ in range(2):
            for axis in (2, 3):
                blurred = _window_means(blurred, side, axis)
        return blurred.astype(np.float32)
    values = np.asarray(fill, np.float32)
    if values.ndim and len(values) != images.shape[1]:
        raise InputError(f"{len(values)} values to fill {images.shape[1]} channels with: give one for each")
    return np.broadcast_to(values.reshape(1, -1, 1, 1), images.shape)


def _window_means(values: np.ndarray, side: int, axis: int) -> np.ndarray:
    """Return the mean over a window of odd `side` at each place of one axis; what is outside does not count."""
    reach, size = side // 2, values.shape[axis]
    sums = np.concatenate([np.zeros_like(values.take([0], axis)), values.cumsum(axis)], axis)
    ends, starts = np.minimum(np.arange(size) + reach + 1, size), np.maximum(np.arange(size) - reach, 0)
    shape = [-1 if place == axis else 1 for place in range(values.ndim)]
    means: np.ndarray = (sums.take(ends, axis) - sums.take(starts, axis)) / (ends - starts).reshape(shape)
    return means
