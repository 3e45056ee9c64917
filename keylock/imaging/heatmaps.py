"""Saliency maps as pictures: scale a map to [0, 1], resize it, colour it, lay it over its image.

NumPy and Pillow only. A map is a float array of shape `(height, width)`, non-negative, in any unit: maps are
compared and drawn by shape, never by absolute value.

    overlay(image, explanation_map).save("why.png")
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from keylock.errors import TensorError, UnknownNameError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["COLORMAPS", "colourise", "normalise", "overlay", "resize", "viewing_scale"]

# The longer side that a picture has at least, in pixels, to be seen well by a person.
_VISIBLE = 256
_MAX_SCALE = 64
_MAX_PIXELS = 100_000_000

COLORMAPS: Mapping[str, tuple[tuple[int, int, int], ...]] = MappingProxyType(
    {
        # Dark to bright without a step, so that it also reads in grey.
        "ember": ((4, 5, 30), (87, 16, 100), (160, 36, 92), (221, 74, 50), (250, 150, 28), (255, 252, 214)),
        "ocean": ((2, 6, 28), (14, 58, 112), (20, 112, 148), (62, 170, 156), (160, 220, 160), (254, 255, 224)),
        "grey": ((0, 0, 0), (255, 255, 255)),
    }
)  # fmt: skip
"""Colours as RGB anchors at equal distances from 0 to 1, linearly interpolated."""

_PEAKS = 0.99


def normalise(saliency: NDArray[Any]) -> NDArray[np.float32]:
    """Scale a map so that its smallest value becomes 0 and its largest 1.

    Args:
        saliency: A map `(height, width)` of finite numbers.

    Returns:
        The scaled map, float32 `(height, width)`. A constant map, which points nowhere, becomes all zeros.

    Raises:
        TensorError: The map has another number of dimensions, is empty, or holds NaN or infinity.
    """
    values = _checked(saliency)
    # Halved before subtraction: the difference of two finite values may overflow, that of their halves does not.
    halves = values / 2 - values.min() / 2
    span = halves.max()
    if span == 0:
        return np.zeros(values.shape, dtype=np.float32)
    scaled: NDArray[np.float32] = (halves / span).astype(np.float32)
    return scaled


def resize(saliency: NDArray[Any], *, size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a map, bilinearly when it grows and by area when it shrinks.

    Args:
        saliency: A map `(height, width)` of finite numbers.
        size: The height and width wanted, in pixels.

    Returns:
        The resized map, float32 of shape `size`; its values stay within the range of the input.

    Raises:
        TensorError: The map or the size is unusable.
    """
    from PIL import Image

    values = _checked(saliency).astype(np.float32)
    height, width = size
    if height < 1 or width < 1:
        raise TensorError(f"cannot resize a map to {height} x {width} pixels; give a height and a width of 1 or more")
    picture = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
    # Clipped, because interpolation in floating point may overshoot by a rounding error.
    return np.clip(np.asarray(picture, dtype=np.float32), values.min(), values.max())


def without_peaks(saliency: NDArray[Any]) -> NDArray[np.float32]:
    """Cut off the top hundredth of a map, so that a single hot pixel does not darken the rest when it is drawn.

    Args:
        saliency: A map `(height, width)` of finite numbers.

    Returns:
        The map, float32, with what was larger brought down to its 99th percentile, unless that is no larger than 0.

    Raises:
        TensorError: The map is unusable.
    """
    values = _checked(saliency).astype(np.float32)
    limit = np.quantile(values, _PEAKS)
    return np.minimum(values, limit) if limit > 0 else values


def colourise(saliency: NDArray[Any], *, colormap: str = "ember") -> NDArray[np.uint8]:
    """Turn a map into colours; it is normalised first.

    Args:
        saliency: A map `(height, width)` of finite numbers.
        colormap: A name in `COLORMAPS`.

    Returns:
        RGB pixels, uint8 `(height, width, 3)`.

    Raises:
        TensorError: The map is unusable.
        UnknownNameError: There is no such colormap.
    """
    return _interpolate(normalise(saliency), colormap)


def overlay(
    image: "Image | NDArray[np.uint8]",
    saliency: NDArray[Any],
    *,
    box: tuple[int, int, int, int] | None = None,
    scale: int = 1,
    opacity: float = 0.75,
    colormap: str = "ember",
) -> "Image":
    """Lay a coloured map over an image. What matters glows; what does not stays as it was.

    Args:
        image: The image, in any mode of Pillow, or uint8 pixels `(height, width, 3)` or `(height, width)`.
        saliency: A map `(height, width)`, at any resolution.
        box: The part of the image the map covers, as left, upper, right and lower pixel; the whole image if left out.
        scale: How many pixels wide and high each pixel of the image becomes.
        opacity: How much the hottest pixel hides of the image, 0 to 1.
        colormap: A name in `COLORMAPS`.

    Returns:
        An RGB image, `scale` times the size of `image`.

    Raises:
        TensorError: The image, the map, the box, the scale or the opacity is unusable.
        UnknownNameError: There is no such colormap.
    """
    from PIL import Image

    pixels = _pixels(image)
    left, upper, right, lower = box = box or (0, 0, pixels.shape[1], pixels.shape[0])
    if not (0 <= left < right <= pixels.shape[1] and 0 <= upper < lower <= pixels.shape[0]):
        raise TensorError(f"the box {box} does not lie inside an image of {pixels.shape[1]} x {pixels.shape[0]} pixels")
    if not 0 <= opacity <= 1:
        raise TensorError(f"opacity must lie between 0 and 1, not {opacity}")
    if isinstance(scale, bool) or not isinstance(scale, int) or not 1 <= scale <= _MAX_SCALE:
        raise TensorError(f"scale must be a whole number from 1 to {_MAX_SCALE}, not {scale!r}")
    if scale > 1 and pixels.shape[0] * pixels.shape[1] * scale**2 > _MAX_PIXELS:
        raise TensorError(f"the picture would have more than {_MAX_PIXELS:,} pixels: give a scale below {scale}")
    pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    left, upper, right, lower = (scale * side for side in box)
    # Normalised before it is resized and not again: resizing flattens a peak, and the peak's colour with it.
    heat = resize(normalise(saliency), size=(lower - upper, right - left))
    # The square root keeps the middle of the scale visible: with the map itself as alpha, half heat all but vanishes.
    alpha = opacity * np.sqrt(heat)[..., np.newaxis]
    colours = _interpolate(heat, colormap)
    blended = pixels.astype(np.float32)
    blended[upper:lower, left:right] = (1 - alpha) * blended[upper:lower, left:right] + alpha * colours
    return Image.fromarray(np.rint(blended).astype(np.uint8))


def viewing_scale(height: int, width: int) -> int:
    """Return by how much to enlarge an image so that a person sees it well; 1 for all but small ones.

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Returns:
        The least whole number that makes the longer side 256 pixels or more, and 64 at most.
    """
    return min(_MAX_SCALE, max(1, -(-_VISIBLE // max(height, width, 1))))


def _interpolate(heat: NDArray[np.float32], colormap: str) -> NDArray[np.uint8]:
    """Look up colours for a map that is in [0, 1] already."""
    if colormap not in COLORMAPS:
        raise UnknownNameError("colormap", colormap, COLORMAPS)
    anchors = np.asarray(COLORMAPS[colormap], dtype=np.float32)
    places = np.linspace(0, 1, len(anchors))
    channels = [np.interp(heat, places, anchors[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _checked(saliency: NDArray[Any]) -> NDArray[np.float64]:
    values = np.asarray(saliency)
    if values.ndim != 2 or values.size == 0:
        raise TensorError(f"a map has the shape (height, width) with at least one pixel, not {values.shape}")
    if values.dtype.kind not in "fiub":
        raise TensorError(f"a map holds numbers, not {values.dtype}")
    if not np.isfinite(values).all():
        raise TensorError("the map holds NaN or infinity and cannot be drawn")
    return values.astype(np.float64)


def _pixels(image: "Image | NDArray[np.uint8]") -> NDArray[np.uint8]:
    from PIL import Image

    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    pixels = np.asarray(image)
    if (
        pixels.dtype != np.uint8
        or pixels.size == 0
        or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3))
    ):
        raise TensorError(
            f"an image has the shape (height, width, 3) or (height, width) and type uint8, not {pixels.shape} "
            f"and {pixels.dtype}"
        )
    return np.repeat(pixels[..., np.newaxis], 3, axis=2) if pixels.ndim == 2 else pixels
