"""The embedded data set: eight shapes on textured backgrounds, drawn from a seed, with exact object masks.

Nothing is downloaded. Object and background get their colours and textures from one distribution, the object stands
anywhere, turned a little, and covers 8 to 30 % of the image; so the outline alone tells the class, and a correct
saliency map has to point at the object. The masks say where that is.

The same seed draws the same images everywhere (a pixel may differ by one grey level between versions of Pillow or
between processors), and image `i` does not depend on how many images are drawn.
"""

import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from keylock.data._outlines import OUTLINES, Outline, unit_outlines
from keylock.data._textures import TextureDraws, paint
from keylock.errors import DataError

__all__ = ["SHAPE_CLASSES", "Shapes", "draw_shapes"]

SHAPE_CLASSES: tuple[str, ...] = tuple(OUTLINES)
"""Class names in the order of the labels."""

_AREA_SHARE = (0.09, 0.27)
_TURN_DEG = 30.0
_MIN_CONTRAST = 0.55
_SUPERSAMPLING = 4
_CHUNK_PIXELS = 2**21


class Shapes(NamedTuple):
    """Drawn images with what is known of them.

    Attributes:
        images: RGB images (count, size, size, 3), uint8.
        labels: Index into `SHAPE_CLASSES` (count,), int64; every run of eight images holds every class once.
        masks: True where the object is (count, size, size), bool.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]


def draw_shapes(*, count: int, size: int = 32, seed: int) -> Shapes:
    """Draw a balanced set of shape images.

    Args:
        count: Number of images, at least 1.
        size: Height and width in pixels, 16 to 512.
        seed: Not negative. The same seed draws the same images; a larger `count` appends to them.

    Returns:
        Images, labels and object masks.

    Raises:
        DataError: An argument is out of range.
    """
    if count < 1 or not 16 <= size <= 512 or seed < 0:
        raise DataError(
            f"cannot draw {count} shapes of {size} pixels from seed {seed}: "
            "take count >= 1, 16 <= size <= 512 and seed >= 0"
        )
    draws = _Draws(count, seed)
    labels = _balanced_labels(draws)
    coverage = _draw_objects(draws, labels, size)
    colours = _contrasting_pairs(draws)
    textures = [_texture_draws(draws, region) for region in ("background", "object")]
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    chunk = max(1, _CHUNK_PIXELS // (size * size))
    for start in range(0, count, chunk):
        rows = slice(start, start + chunk)
        background, foreground = (paint(colours[rows, i], textures[i][rows], size) for i in range(2))
        share = coverage[rows, ..., None] / 255.0
        mixed = background + share * (foreground - background)
        images[rows] = np.rint(mixed * 255.0).astype(np.uint8)
    return Shapes(images, labels, coverage >= 128)


class _Draws:
    """Uniform random numbers by name: each name has a stream of its own, so that adding one changes no other."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self._seed = count, seed

    def __call__(self, name: str, *shape: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """Return numbers in [low, high), (count, *shape)."""
        stream = np.random.Generator(np.random.PCG64([self._seed, zlib.crc32(name.encode())]))
        return low + (high - low) * stream.random((self.count, *shape))


def _balanced_labels(draws: _Draws) -> NDArray[np.int64]:
    """Return labels of which every eight in a row are a permutation of the classes."""
    order = np.argsort(draws("order", len(SHAPE_CLASSES)), axis=1, kind="stable")
    return order.astype(np.int64).reshape(-1)[: draws.count]


def _contrasting_pairs(draws: _Draws) -> NDArray[np.float64]:
    """Return a background and an object colour per image, (count, 2, 3) in [0, 1].

    Both come from one distribution. Of pairs that are too alike, both colours are moved apart by the same amount:
    the pair stays exchangeable, so no colour belongs to objects more than to backgrounds.
    """
    pairs = draws("colours", 2, 3, low=0.08, high=0.92)
    middle, half = pairs.mean(axis=1, keepdims=True), (pairs[:, 1:] - pairs[:, :1]) / 2
    distance = 2 * np.linalg.norm(half, axis=2, keepdims=True)
    stretch = np.maximum(1.0, _MIN_CONTRAST / np.maximum(distance, 1e-9))
    half *= stretch
    # Moving the middle keeps both colours inside the cube, which clipping each of them would not.
    reach = np.abs(half)
    middle = np.clip(middle, np.minimum(0.05 + reach, 0.5), np.maximum(0.95 - reach, 0.5))
    moved: NDArray[np.float64] = np.clip(np.concatenate([middle - half, middle + half], axis=1), 0.0, 1.0)
    return moved


def _texture_draws(draws: _Draws, region: str) -> TextureDraws:
    """Return the random numbers of one texture per image."""
    return TextureDraws(
        kind=draws(f"{region} kind"),
        angle=draws(f"{region} angle"),
        frequency=draws(f"{region} frequency"),
        phase=draws(f"{region} phase", 2),
        lattice=draws(f"{region} lattice", 7, 7),
        amplitude=draws(f"{region} amplitude"),
        tint=draws(f"{region} tint", 3),
    )


def _draw_objects(draws: _Draws, labels: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """Return how much of every pixel the object covers, (count, size, size), 0 to 255."""
    outlines = unit_outlines()
    sides = np.sqrt(draws("area", low=_AREA_SHARE[0], high=_AREA_SHARE[1])) * size
    turns = np.radians(draws("turn", low=-_TURN_DEG, high=_TURN_DEG))
    places = draws("place", 2)
    coverage = np.empty((len(labels), size, size), dtype=np.uint8)
    for i, label in enumerate(labels):
        cos, sin = np.cos(turns[i]), np.sin(turns[i])
        transform = np.array([[cos, sin], [-sin, cos]]) * sides[i]
        coverage[i] = _draw_object(outlines[label], transform, places[i], size)
    return coverage


def _draw_object(
    outline: Outline, transform: NDArray[np.float64], place: NDArray[np.float64], size: int
) -> NDArray[np.uint8]:
    """Draw one outline, turned and scaled by `transform`, at a place in [0, 1)² of where it fits wholly."""
    outer = outline.outer @ transform
    low, high = outer.min(axis=0), outer.max(axis=0)
    # Half a pixel of margin keeps the softened edge inside too.
    room = np.maximum(size - 1.0 - (high - low), 0.0)
    shift = 0.5 - low + place * room
    canvas = Image.new("L", (size * _SUPERSAMPLING, size * _SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    pen.polygon(_corners(outer + shift), fill=255)
    if outline.hole is not None:
        pen.polygon(_corners(outline.hole @ transform + shift), fill=0)
    return np.asarray(canvas.reduce(_SUPERSAMPLING))


def _corners(points: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Return points in supersampled pixels, the way Pillow takes them: pixel centres have whole coordinates."""
    return [(float(x), float(y)) for x, y in np.rint(points * _SUPERSAMPLING - 0.5)]
