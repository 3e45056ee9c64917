"""An image that was read and is not framed yet: its parts, upright and in RGB, and the whole brought to a size.

Conversions make a copy at each step, so they go by bands. So does scaling: first rows, each by itself, then the columns
of what has come out. Pillow does the same with a whole image that becomes smaller; which way it goes first with others
depends on its version, and here it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keylock.errors import ImageError

__all__ = ["LYING", "Picture", "of_array", "of_image"]

Box = tuple[int, int, int, int]

# Bands have about this many pixels, and one row at least.
_BAND_PIXELS: Final = 2**20
_TRANSPARENT_MODES: Final = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})

# What makes an image upright, by its EXIF orientation.
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LYING: Final = frozenset({5, 6, 7, 8})
"""The EXIF orientations of images whose width is the height of the upright image."""


class Picture:
    """An image of any mode and orientation, seen upright and in RGB.

    Attributes:
        width: Of the upright image in pixels.
        height: Of the upright image in pixels.
        full_width: That of the upright image in the file, which is larger where it was reduced when it was decoded.
        full_height: Likewise.
    """

    def __init__(
        self,
        part: Callable[[Box], Image.Image],
        *,
        size: tuple[int, int],
        orientation: int = 1,
        full_size: tuple[int, int] | None = None,
    ) -> None:
        """Takes what was read.

        Args:
            part: Returns a part of the image as it lies in the file, in RGB, by left, upper, right and lower edge.
            size: Width and height of that image.
            orientation: Its EXIF orientation; anything but 2 to 8 is upright.
            full_size: Width and height that it has in the file; `size` when None.
        """
        self._part, self._size = part, size
        self._turn = _UPRIGHT.get(orientation)
        self._orientation = orientation if orientation in _UPRIGHT else 1
        swap = orientation in LYING
        self.width, self.height = size[::-1] if swap else size
        full = size if full_size is None else full_size
        self.full_width, self.full_height = full[::-1] if swap else full

    def part(self, left: int, top: int, right: int, bottom: int) -> Image.Image:
        """Returns a part of the upright image in RGB, between these edges in pixels."""
        width, height = self._size
        boxes: dict[int, Box] = {
            1: (left, top, right, bottom),
            2: (width - right, top, width - left, bottom),
            3: (width - right, height - bottom, width - left, height - top),
            4: (left, height - bottom, right, height - top),
            5: (top, left, bottom, right),
            6: (top, height - right, bottom, height - left),
            7: (width - bottom, height - right, width - top, height - left),
            8: (width - bottom, left, width - top, right),
        }
        found = self._part(boxes[self._orientation])
        return found if self._turn is None else found.transpose(self._turn)

    def pixels(self) -> NDArray[np.uint8]:
        """Returns all pixels, uint8 `(height, width, 3)`."""
        pixels = np.empty((self.height, self.width, 3), np.uint8)
        rows = self._band_rows()
        for top in range(0, self.height, rows):
            bottom = min(top + rows, self.height)
            pixels[top:bottom] = np.asarray(self.part(0, top, self.width, bottom))
        return pixels

    def scaled(self, size: tuple[int, int], box: tuple[float, float, float, float], *, mode: str) -> NDArray[np.uint8]:
        """Brings a part of the image to a size with Pillow's bilinear filter, rows first.

        Args:
            size: Height and width.
            box: Left, top, right and bottom edge of the part, in pixels of this image, with fractions.
            mode: `RGB` or `L`.

        Returns:
            Pixels, uint8 `(*size, 1 or 3)`.
        """
        # As Pillow takes them: shifted by whole rows below, they lose nothing.
        left, top, right, bottom = (float(np.float32(edge)) for edge in box)
        height, width = size
        if (self.height, self.width) == size and (left, top, right, bottom) == (0, 0, width, height):
            return np.array(self._all_in(mode), np.uint8).reshape(height, width, -1)
        reach = max(1.0, (bottom - top) / height) + 1
        first, last = max(0, math.floor(top - reach)), min(self.height, math.ceil(bottom + reach))
        narrow = Image.new(mode, (width, last - first))
        rows = self._band_rows()
        for start in range(first, last, rows):
            stop = min(start + rows, last)
            band = _in_mode(self.part(0, start, self.width, stop), mode)
            narrow.paste(
                band.resize((width, stop - start), Image.Resampling.BILINEAR, box=(left, 0, right, stop - start)),
                (0, start - first),
            )
        whole = narrow.resize((width, height), Image.Resampling.BILINEAR, box=(0, top - first, width, bottom - first))
        return np.array(whole, np.uint8).reshape(height, width, -1)

    def _all_in(self, mode: str) -> Image.Image:
        return _in_mode(self.part(0, 0, self.width, self.height), mode)

    def _band_rows(self) -> int:
        return max(1, _BAND_PIXELS // self.width)


def of_image(image: Image.Image, *, orientation: int, full_size: tuple[int, int] | None = None) -> Picture:
    """Makes a picture of an image that Pillow has decoded, whose values have eight bits."""

    def part(box: Box) -> Image.Image:
        return _to_opaque_rgb(image if box == (0, 0, *image.size) else image.crop(box))

    return Picture(part, size=image.size, orientation=orientation, full_size=full_size)


def of_array(
    values: NDArray[Any], to_rgb: Callable[[NDArray[Any]], NDArray[np.uint8]], *, orientation: int = 1
) -> Picture:
    """Makes a picture of an array.

    Args:
        values: `(height, width, ...)`.
        to_rgb: Turns a part of them into pixels, uint8 `(height, width, 3)`, each by itself.
        orientation: Its EXIF orientation.
    """

    def part(box: Box) -> Image.Image:
        left, top, right, bottom = box
        return Image.fromarray(np.ascontiguousarray(to_rgb(values[top:bottom, left:right])))

    return Picture(part, size=(values.shape[1], values.shape[0]), orientation=orientation)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def _to_opaque_rgb(band: Image.Image) -> Image.Image:
    """Returns a band of an image in RGB, over white. Each pixel is converted by itself: bands change nothing."""
    if band.mode in _TRANSPARENT_MODES or "transparency" in band.info:
        band = band.convert("RGBA")
        band = Image.alpha_composite(Image.new("RGBA", band.size, (255, 255, 255, 255)), band)
    try:
        return _in_mode(band, "RGB")
    except ValueError:
        raise ImageError(f"the image has colours of the kind {band.mode}, which are not read: save it as RGB") from None
