"""Image files, decoded safely: from the bytes of a file to upright RGB pixels, or one clear error.

`decode` looks at the header before it decodes anything, so that a small file that unfolds to gigapixels costs
nothing. What it returns never depends on how the file stored its pixels: palette, grey, 16 bits, CMYK, transparency
and EXIF orientation all end as upright 8-bit RGB. Values of more than eight bits need a scale
(`keylock.imaging.grey_levels`). Training data and the server both come through here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from keylock.errors import ImageError
from keylock.imaging.deep_images import deep_values, is_deep, stated_bits
from keylock.imaging.dicom import is_dicom, measure_dicom, read_dicom
from keylock.imaging.grey_levels import GreyLevels, agree_on_bits, fewest_bits, to_8_bits
from keylock.imaging.pictures import LYING, Picture, of_array, of_image

__all__ = ["FORMATS", "ImageLimits", "OpenedImage", "decode", "is_dicom", "measure", "to_rgb"]


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


DEFAULT_LIMITS: Final = ImageLimits()

# The readers are called directly, because Image.open warns through the process-wide warning filters about sizes that
# are checked here anyhow, and because it tries every format it knows.
_READERS: Final[dict[str, tuple[Callable[[bytes], bool], Callable[[io.BytesIO], ImageFile.ImageFile]]]] = {
    "PNG": (lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    "JPEG": (lambda head: head.startswith(b"\xff\xd8\xff"), JpegImagePlugin.jpeg_factory),
    "WebP": (lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", WebPImagePlugin.WebPImageFile),
    "GIF": (lambda head: head[:6] in (b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    "BMP": (lambda head: head.startswith(b"BM"), BmpImagePlugin.BmpImageFile),
    "TIFF": (lambda head: head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
}
FORMATS: Final = tuple(_READERS)

# Compressions, sample formats and layouts that Pillow and pydicom do not know fail in them as damage does.
_OF_MANY_KINDS: Final = frozenset({"TIFF", "DICOM"})
# What a pixel takes while an image is decoded, in bytes: Pillow's copy; with more than eight bits copies of both halves
# and their sum; what the decoders of some formats hold beside it; the coefficients of a progressive JPEG file.
_PIXEL_BYTES: Final = 4
_DEEP_BYTES: Final = 24
_DEEP_GREY_BYTES: Final = 10
_EXTRA_BYTES: Final = {"WebP": 16}
_COEFFICIENT_BYTES: Final = 8

_TILE_SIDES: Final = (322, 323)
_NEW_SUBFILE_TYPE: Final = 254
_COPY_OR_MASK: Final = 1 | 4
_LOOKED_AT_PAGES: Final = 16
_EXIF_ORIENTATION: Final = 0x0112


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
        _check_bytes(data, limits)
        _takes_dicom(data, False)
        self._data, self._name = data, _sniff(data)
        with _explained(self._name):
            self._image = _open(self._name, data, limits)
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
        lies = _orientation(self._image) in LYING
        times = choose(width, height) if lies else choose(height, width)
        if times > 1:
            with _explained(self._name):
                self._image.draft(None, (width // times, height // times))

    @property
    def decoding_bytes(self) -> int:
        """How much memory the file takes at most while it is decoded, about."""
        pixels = self.size[0] * self.size[1]
        if self._deep:
            return pixels * (_DEEP_GREY_BYTES if self._image.mode.startswith("I") else _DEEP_BYTES)
        beside = pixels * _EXTRA_BYTES.get(self._name, 0)
        if isinstance(self._image, JpegImagePlugin.JpegImageFile) and _has_several_scans(self._image, self._data):
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
        with _explained(self._name):
            if not self._deep:
                self._image.load()
                return of_image(self._image, orientation=_orientation(self._image), full_size=self.size)
            values = deep_values(self._image, self._data, _READERS[self._name][1])
            levels = _levels(values, stated_bits(self._image, self._data, values))
            chosen = _choose_bits(levels, bits, guess)
            return of_array(values, lambda part: _over_white(part, chosen), orientation=_orientation(self._image))


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
    _check_bytes(data, limits)
    if _takes_dicom(data, dicom):
        with _explained("DICOM"):
            check = partial(_check_size, limits=limits)
            return read_dicom(data, check_size=check, choose_bits=lambda levels: _choose_bits(levels, bits, guess))
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
    _check_bytes(data, limits)
    if _takes_dicom(data, dicom):
        with _explained("DICOM"):
            return measure_dicom(data, check_size=partial(_check_size, limits=limits))
    name = _sniff(data)
    with _explained(name):
        image = _open(name, data, limits)
        if not is_deep(image):
            return None
        values = deep_values(image, data, _READERS[name][1])
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
    orientation = _orientation(image)
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


def _check_bytes(data: bytes, limits: ImageLimits) -> None:
    if not data:
        raise ImageError("the image is empty (0 bytes): send the contents of a PNG or JPEG file")
    if len(data) > limits.max_bytes:
        raise ImageError(
            f"the image file has {len(data):,} bytes and at most {limits.max_bytes:,} are accepted: send a smaller one"
        )


def _takes_dicom(data: bytes, dicom: bool) -> bool:
    if not is_dicom(data):
        return False
    if not dicom:
        raise ImageError("the image is a DICOM file, which is not read here: send it as PNG or TIFF")
    return True


def _open(name: str, data: bytes, limits: ImageLimits) -> Image.Image:
    """Opens a file of a known format, and checks everything that its header tells."""
    # The WebP reader allocates the canvas as soon as it is opened; the PNG reader calls no pixels damage.
    if name == "WebP":
        _check_size(*_webp_size(data), limits=limits)
    elif name == "PNG":
        _check_size(*_png_size(data), limits=limits)
    image = _READERS[name][1](io.BytesIO(data))
    _check_size(*image.size, limits=limits)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # A tile is unpacked whole, however little of it the image uses.
        _check_size(*(int(image.tag_v2.get(side, 1)) for side in _TILE_SIDES), limits=limits)
        _check_pages(image)
    # Phones write MPO files: a JPEG image followed by previews, which are not an animation.
    elif image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageError(f"the {name} image is animated: send a single frame")
    return image


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # The readers raise whatever the damage leads to: OSError, SyntaxError, struct.error...
        if name in _OF_MANY_KINDS:
            kinds = "or of a kind that is not read: send the whole file, or a PNG file"
            raise ImageError(f"the {name} image cannot be decoded, it is damaged or truncated, {kinds}") from error
        raise ImageError(
            f"the {name} image cannot be decoded, it is damaged or truncated: send the whole file again"
        ) from error


def _check_pages(image: TiffImagePlugin.TiffImageFile) -> None:
    """Refuses a file with several pages; smaller copies and masks of the same image do not count."""
    for _ in range(_LOOKED_AT_PAGES):
        try:
            image.seek(image.tell() + 1)
        except EOFError:
            break
        if not int(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)) & _COPY_OR_MASK:
            raise ImageError("the TIFF image has several pages: send a single one")
    image.seek(0)


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


def _sniff(data: bytes) -> str:
    head = data[:16]
    for name, (matches, _) in _READERS.items():
        if matches(head):
            return name
    raise ImageError(f"the bytes are not an image file that keylock reads: send one of {', '.join(FORMATS)}")


def _check_size(width: int, height: int, *, limits: ImageLimits) -> None:
    if width <= 0 or height <= 0:
        raise ImageError(f"the image has no pixels ({width} x {height}): send one that has some")
    if max(width, height) > limits.max_side:
        raise ImageError(
            f"the image has {width} x {height} pixels and sides of at most {limits.max_side:,} are accepted: "
            "scale it down before sending it"
        )
    if width * height > limits.max_pixels:
        raise ImageError(
            f"the image has {width} x {height} pixels and at most {limits.max_pixels:,} are accepted: "
            "scale it down before sending it"
        )


def _png_size(data: bytes) -> tuple[int, int]:
    """Reads width and height from the IHDR chunk, which comes first (PNG specification, sections 5.6 and 11.2.1)."""
    head = data[:24]
    if len(head) < 24 or head[12:16] != b"IHDR":
        raise ImageError("the PNG image cannot be decoded, it is damaged or truncated: send the whole file again")
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Reads width and height from the header of a WebP file.

    References:
        RFC 9649, section 2.7 (VP8X canvas), section 3.4 (VP8L header); RFC 6386, section 9.1 (VP8 frame header).
    """
    head, chunk = data[:30].ljust(30, b"\0"), data[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def _has_several_scans(image: JpegImagePlugin.JpegImageFile, data: bytes) -> bool:
    """Returns whether all coefficients are kept until the last scan: the first one has not all of them.

    References:
        ITU-T T.81, sections B.1.1.4 (markers with lengths) and B.2.3 (scan header).
    """
    if image.info.get("progressive"):
        return True
    place = 2
    while place + 5 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xDA:
            return data[place + 4] < image.layers
        # Bytes that fill up, and markers without a length.
        step = 1 if marker == 0xFF else 2 if marker == 0x01 or 0xD0 <= marker <= 0xD8 else 0
        place += step or 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return True


def _orientation(image: Image.Image) -> int:
    try:
        return cast(int, image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # Damaged EXIF data is not a reason to refuse pixels that are whole.
        return 1
