"""Image files, decoded safely: from the bytes of a file to upright RGB pixels, or one clear error.

`decode` looks at the header before it decodes anything, so that a small file that unfolds to gigapixels costs
nothing. What it returns never depends on how the file stored its pixels: palette, grey, 16 bits, CMYK, transparency
and EXIF orientation all end as upright 8-bit RGB. Values of more than eight bits need a scale (`keylock.grey_levels`).
Training data and the server both come through here.
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

from keylock.decoding_memory import DecodingMemory
from keylock.deep_images import deep_values, is_deep, stated_bits
from keylock.dicom import is_dicom, measure_dicom, read_dicom
from keylock.errors import ImageError
from keylock.grey_levels import GreyLevels, agree_on_bits, fewest_bits, to_8_bits

__all__ = ["FORMATS", "ImageLimits", "decode", "is_dicom", "measure", "to_rgb"]


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What an image may cost at most.

    Attributes:
        max_bytes: Size of the file in bytes.
        max_pixels: Width times height, checked before decoding.
        memory: What large images share while they are decoded and preprocessed; None bounds nothing.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    memory: DecodingMemory | None = None


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
# What a pixel takes while an image is decoded and preprocessed: Pillow's copy, ours, and the one that is scaled.
_PIXEL_BYTES: Final = 12
_DEEP_BYTES: Final = 24
# Conversions go by bands of about this many pixels, because each of their steps makes a copy.
_BAND_PIXELS: Final = 2**20

_TILE_SIDES: Final = (322, 323)
_NEW_SUBFILE_TYPE: Final = 254
_COPY_OR_MASK: Final = 1 | 4
_LOOKED_AT_PAGES: Final = 16
_TRANSPARENT_MODES: Final = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_EXIF_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(
    data: bytes,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    bits: int | None = None,
    dicom: bool = False,
    guess: bool = False,
    claim: Callable[[int], None] | None = None,
) -> NDArray[np.uint8]:
    """Decodes the bytes of an image file.

    Args:
        data: A PNG, JPEG, WebP, BMP or TIFF file, or a GIF file with one frame.
        limits: What the image may cost.
        bits: How many bits the values have of an image with more than eight; without it what the file says counts.
        dicom: Whether DICOM files are converted too.
        guess: Take the fewest bits that fit where the scale is unknown: for looking at an image, not for a model.
        claim: Told how many bytes decoding and preprocessing take, before they are taken; may wait, or raise.

    Returns:
        RGB pixels, uint8 `(height, width, 3)`; transparent pixels are laid over white.

    Raises:
        ImageError: If the bytes are no such file, or are damaged, animated, without pixels or over the limits, or have
            values of which nobody says how many bits they have.
    """

    def choose_bits(levels: GreyLevels) -> int:
        if bits is not None:
            return bits
        try:
            return agree_on_bits([levels], whose="the image has")
        except ImageError:
            if guess:
                return fewest_bits(levels.highest)
            raise

    _check_bytes(data, limits)
    if _takes_dicom(data, dicom):
        with _explained("DICOM"):
            return read_dicom(data, check_size=partial(_check_size, limits=limits), choose_bits=choose_bits)
    name = _sniff(data)
    with _explained(name):
        image = _open(name, data, limits)
        deep = is_deep(image)
        if claim is not None:
            claim(image.width * image.height * (_DEEP_BYTES if deep else _PIXEL_BYTES))
        if not deep:
            image.load()
            return to_rgb(image)
        values = deep_values(image, data, _READERS[name][1])
        chosen = choose_bits(_levels(values, stated_bits(image, data, values)))
        return _upright(_over_white(values, chosen), _orientation(image))


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
    if image.mode.startswith("I"):
        values = np.asarray(image)
        chosen = agree_on_bits([_levels(values, None)], whose="the image has") if bits is None else bits
        return _upright(_over_white(values, chosen), orientation)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(_to_opaque_rgb(band))
    return _upright(pixels, orientation)


def _to_opaque_rgb(band: Image.Image) -> Image.Image:
    """Returns a band of an image in RGB, over white. Each pixel is converted by itself: bands change nothing."""
    if band.mode in _TRANSPARENT_MODES or "transparency" in band.info:
        band = band.convert("RGBA")
        band = Image.alpha_composite(Image.new("RGBA", band.size, (255, 255, 255, 255)), band)
    try:
        return band.convert("RGB")
    except ValueError:
        raise ImageError(f"the image has colours of the kind {band.mode}, which are not read: save it as RGB") from None


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
    pixels = np.empty((*values.shape[:2], 3), np.uint8)
    rows = max(1, _BAND_PIXELS // values.shape[1])
    for top in range(0, len(values), rows):
        pixels[top : top + rows] = _band_over_white(values[top : top + rows], bits)
    return pixels


def _band_over_white(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    if values.ndim == 2:
        return to_8_bits(values, bits=bits)[..., np.newaxis]
    rgb = to_8_bits(values[..., :3], bits=bits)
    if values.shape[2] == 3:
        return rgb
    opacity = values[..., 3:].astype(np.float32) / 65535
    return np.rint(rgb * opacity + 255 * (1 - opacity)).astype(np.uint8)


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation not in _UPRIGHT:
        return pixels
    return np.array(Image.fromarray(pixels).transpose(_UPRIGHT[orientation]))


def _sniff(data: bytes) -> str:
    head = data[:16]
    for name, (matches, _) in _READERS.items():
        if matches(head):
            return name
    raise ImageError(f"the bytes are no image file keylock reads: send one of {', '.join(FORMATS)}")


def _check_size(width: int, height: int, *, limits: ImageLimits) -> None:
    if width <= 0 or height <= 0:
        raise ImageError(f"the image has no pixels ({width} x {height}): send one that has some")
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


def _orientation(image: Image.Image) -> int:
    try:
        return cast(int, image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # Damaged EXIF data is no reason to refuse pixels that are whole.
        return 1
