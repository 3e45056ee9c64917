"""Image files, decoded safely: from the bytes of a file to upright RGB pixels, or one clear error.

`decode` looks at the header before it decodes anything, so that a small file that unfolds to gigapixels costs
nothing. What it returns never depends on how the file stored its pixels: palette, grey, 16 bits, CMYK, transparency
and EXIF orientation all end as upright 8-bit RGB. Values of more than eight bits need a scale
(`keylock.imaging.grey_levels`). Training data and the server both come through here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from keylock.errors import ImageError
from keylock.imaging.deep_images import deep_values, is_deep, stated_bits
from keylock.imaging.dicom import is_dicom, measure_dicom, read_dicom
from keylock.imaging.formats import explained, format_of, has_several_scans, open_file, opener_of, orientation_of
from keylock.imaging.grey_levels import GreyLevels, agree_on_bits, fewest_bits, to_8_bits
from keylock.imaging.pictures import LYING, Picture, of_array, of_image

__all__ = ["ImageLimits", "OpenedImage", "decode", "is_dicom", "measure", "to_rgb"]


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What an image may cost at most.

    Attributes:
        max_bytes: Size of the file in bytes.
        max_pixels: Width times height, checked before decoding.
        max_side: The longer side in pixels: scaling one that is longer takes memory for its length alone.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    max_side: int = 2**17

    def check_bytes(self, data: bytes) -> None:
        """Returns when a file is not too large.

        Raises:
            ImageError: If it is, or is empty.
        """
        if not data:
            raise ImageError("the image is empty (0 bytes): send the contents of a PNG or JPEG file")
        if len(data) > self.max_bytes:
            raise ImageError(
                f"the image file has {len(data):,} bytes and at most {self.max_bytes:,} are accepted: "
                "send a smaller one"
            )

    def check_size(self, width: int, height: int) -> None:
        """Returns when an image is not too large, in pixels.

        Raises:
            ImageError: If it is, or has no pixels.
        """
        if width <= 0 or height <= 0:
            raise ImageError(f"the image has no pixels ({width} x {height}): send one that has some")
        if max(width, height) > self.max_side:
            raise ImageError(
                f"the image has {width} x {height} pixels and sides of at most {self.max_side:,} are accepted: "
                "scale it down before sending it"
            )
        if width * height > self.max_pixels:
            raise ImageError(
                f"the image has {width} x {height} pixels and at most {self.max_pixels:,} are accepted: "
                "scale it down before sending it"
            )


DEFAULT_LIMITS: Final = ImageLimits()

# What a pixel takes while an image is decoded, in bytes: Pillow's copy; with more than eight bits copies of both halves
# and their sum; what the decoders of some formats hold beside it; the coefficients of a progressive JPEG file.
_PIXEL_BYTES: Final = 4
_DEEP_BYTES: Final = 24
_DEEP_GREY_BYTES: Final = 10
_EXTRA_BYTES: Final = {"WebP": 16}
_COEFFICIENT_BYTES: Final = 8


class OpenedImage:
    """An image file whose header was read and checked, and none of whose pixels are decoded yet.

    Attributes:
        size: Width and height in pixels, as the image lies in the file.
    """

    def __init__(self, data: bytes, *, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        """Reads the header.

        Args:
            data: A PNG, JPEG, WebP, BMP or TIFF file, or a GIF file with one frame.
            limits: What the image may cost.

        Raises:
            ImageError: If the bytes are no such file, or are damaged, animated, without pixels or over the limits.
        """
        limits.check_bytes(data)
        _takes_dicom(data, False)
        self._data, self._name = data, format_of(data)
        with explained(self._name):
            self._image = open_file(self._name, data, limits.check_size)
            self._deep = is_deep(self._image)
        self.size = self._image.size

    def reduce(self, choose: Callable[[int, int], int]) -> None:
        """Lets a JPEG file be decoded at a half or a quarter of its size; other files stay as they are.

        Args:
            choose: Returns by how much, 1, 2 or 4, from height and width of the upright image.
        """
        if not isinstance(self._image, JpegImagePlugin.JpegImageFile):
            return
        width, height = self.size
        lies = orientation_of(self._image) in LYING
        times = choose(width, height) if lies else choose(height, width)
        if times > 1:
            with explained(self._name):
                self._image.draft(None, (width // times, height // times))

    @property
    def decoding_bytes(self) -> int:
        """How much memory the file takes at most while it is decoded, about."""
        pixels = self.size[0] * self.size[1]
        if self._deep:
            return pixels * (_DEEP_GREY_BYTES if self._image.mode.startswith("I") else _DEEP_BYTES)
        beside = pixels * _EXTRA_BYTES.get(self._name, 0)
        if isinstance(self._image, JpegImagePlugin.JpegImageFile) and has_several_scans(self._image, self._data):
            beside += pixels * _COEFFICIENT_BYTES
        return beside + self._image.width * self._image.height * _PIXEL_BYTES

    def read(self, *, bits: int | None = None, guess: bool = False) -> Picture:
        """Decodes the image. To be called once.

        Args:
            bits: How many bits the values have of an image with more than eight; without it what the file says counts.
            guess: Take the fewest bits that fit where the scale is unknown: for looking at it, not for a model.

        Raises:
            ImageError: If the pixels are damaged, or have values of which nobody says how many bits they have.
        """
        with explained(self._name):
            if not self._deep:
                self._image.load()
                return of_image(self._image, orientation=orientation_of(self._image), full_size=self.size)
            values = deep_values(self._image, self._data, opener_of(self._name))
            levels = _levels(values, stated_bits(self._image, self._data, values))
            chosen = _choose_bits(levels, bits, guess)
            return of_array(values, lambda part: _over_white(part, chosen), orientation=orientation_of(self._image))


def decode(
    data: bytes,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    bits: int | None = None,
    dicom: bool = False,
    guess: bool = False,
) -> NDArray[np.uint8]:
    """Decodes the bytes of an image file.

    Args:
        data: A PNG, JPEG, WebP, BMP or TIFF file, or a GIF file with one frame.
        limits: What the image may cost.
        bits: As of `OpenedImage.read`.
        dicom: Whether DICOM files are converted too.
        guess: As of `OpenedImage.read`.

    Returns:
        RGB pixels, uint8 `(height, width, 3)`; transparent pixels are laid over white.

    Raises:
        ImageError: As `OpenedImage` raises it, and as its `read` does.
    """
    limits.check_bytes(data)
    if _takes_dicom(data, dicom):
        with explained("DICOM"):
            return read_dicom(
                data, check_size=limits.check_size, choose_bits=lambda levels: _choose_bits(levels, bits, guess)
            )
    return OpenedImage(data, limits=limits).read(bits=bits, guess=guess).pixels()


def measure(data: bytes, *, limits: ImageLimits = DEFAULT_LIMITS, dicom: bool = False) -> GreyLevels | None:
    """Finds out about the scale of an image with more than eight bits, which one file alone may not tell.

    Args:
        data: As of `decode`.
        limits: What the image may cost.
        dicom: Whether DICOM files are looked at too.

    Returns:
        What the file says and shows, or None where its pixels have eight bits or a scale of their own.

    Raises:
        ImageError: As `decode` does.
    """
    limits.check_bytes(data)
    if _takes_dicom(data, dicom):
        with explained("DICOM"):
            return measure_dicom(data, check_size=limits.check_size)
    name = format_of(data)
    with explained(name):
        image = open_file(name, data, limits.check_size)
        if not is_deep(image):
            return None
        values = deep_values(image, data, opener_of(name))
        return _levels(values, stated_bits(image, data, values))


def to_rgb(image: Image.Image, *, bits: int | None = None) -> NDArray[np.uint8]:
    """Turns a decoded Pillow image of any mode into upright RGB pixels.

    Args:
        image: The image; its EXIF orientation is applied.
        bits: How many bits the values have of an image with more than eight.

    Returns:
        RGB pixels, uint8 `(height, width, 3)`; transparent pixels are laid over white.

    Raises:
        ImageError: If the image has no pixels, floating-point values, or more than eight bits and nobody says how many.
    """
    if not image.width or not image.height:
        raise ImageError(f"the image has no pixels ({image.width} x {image.height}): send one that has some")
    orientation = orientation_of(image)
    if image.mode == "F":
        raise ImageError("the image has floating-point values, which have no scale: convert it to 8 or 16 bits")
    if not image.mode.startswith("I"):
        return of_image(image, orientation=orientation).pixels()
    values = np.asarray(image)
    chosen = agree_on_bits([_levels(values, None)], whose="the image has") if bits is None else bits
    return of_array(values, lambda part: _over_white(part, chosen), orientation=orientation).pixels()


def _choose_bits(levels: GreyLevels, bits: int | None, guess: bool) -> int:
    if bits is not None:
        return bits
    try:
        return agree_on_bits([levels], whose="the image has")
    except ImageError:
        if guess:
            return fewest_bits(levels.highest)
        raise


def _takes_dicom(data: bytes, dicom: bool) -> bool:
    if not is_dicom(data):
        return False
    if not dicom:
        raise ImageError("the image is a DICOM file, which is not read here: send it as PNG or TIFF")
    return True


def _levels(values: NDArray[Any], stated: int | None) -> GreyLevels:
    colours = values if values.ndim == 2 else values[..., :3]
    return GreyLevels(int(colours.max()), stated)


def _over_white(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Scales deep values (height, width) or (height, width, 3 or 4) to RGB pixels, transparent ones over white."""
    if values.ndim == 2:
        return np.repeat(to_8_bits(values, bits=bits)[..., np.newaxis], 3, axis=2)
    rgb = to_8_bits(values[..., :3], bits=bits)
    if values.shape[2] == 3:
        return rgb
    opacity = values[..., 3:].astype(np.float32) / 65535
    return np.rint(rgb * opacity + 255 * (1 - opacity)).astype(np.uint8)
