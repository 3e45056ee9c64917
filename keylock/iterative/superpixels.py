"""Images cut into segments: the on-off features of LIME and KernelSHAP."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from keylock.iterative.base import Images

__all__ = ["SUPERPIXELS", "grid_segments", "grid_shape", "slic_segments"]

Numbers = NDArray[np.int64]

_ROUNDS = 5
_COMPACTNESS = 0.5


def grid_shape(height: int, width: int, count: int) -> tuple[int, int]:
    """Return rows and columns of a grid of at most `count` cells, as close to the image's proportions as it can be."""
    rows = min(max(1, round(math.sqrt(count * height / width))), height, count)
    return rows, min(max(1, count // rows), width)


def grid_segments(images: Images, count: int) -> Numbers:
    """Cut images (batch, channels, height, width) into equal rectangles: numbers (batch, height, width)."""
    height, width = images.shape[2:]
    rows, columns = grid_shape(height, width, count)
    down, across = np.arange(height) * rows // height, np.arange(width) * columns // width
    return np.broadcast_to(down[:, None] * columns + across, (len(images), height, width))


def slic_segments(images: Images, count: int) -> Numbers:
    """Cut images (batch, channels, height, width) into segments of like colour: numbers (batch, height, width).

    k-means over colour and place, started on a grid. Unlike in the paper every pixel looks at every centre, and a
    segment may fall into several pieces.

    References:
        Achanta et al., "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods", IEEE TPAMI 2012, section 4.
    """
    start = grid_segments(images, count)
    height, width = images.shape[2:]
    side = math.sqrt(height * width / count)
    places = _COMPACTNESS / side * np.indices((height, width))
    segments = int(start.max()) + 1
    numbers = []
    for image, initial in zip(images.astype(np.float64), start, strict=True):
        colours = image / max(image.std(), 1e-6)
        points = np.concatenate([colours, places]).reshape(-1, height * width).T
        labels = initial.ravel()
        for _ in range(_ROUNDS):
            sizes = np.bincount(labels, minlength=segments)
            sums = np.stack([np.bincount(labels, column, segments) for column in points.T], axis=1)
            centres = sums / np.maximum(sizes, 1)[:, None]
            # The squared distance without the square of the point, which is the same for every centre.
            distances = np.square(centres).sum(axis=1) - 2 * points @ centres.T
            # A centre that lost all its pixels stays out.
            distances[:, sizes == 0] = np.inf
            labels = distances.argmin(axis=1)
        numbers.append(labels.reshape(height, width))
    return np.stack(numbers)


SUPERPIXELS: dict[str, Callable[[Images, int], Numbers]] = {"grid": grid_segments, "slic": slic_segments}
"""Ways to cut an image, by the value of the parameter `superpixels`."""
