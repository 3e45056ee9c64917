"""Image files, decoded safely: from the bytes of a file to upright RGB pixels, or one clear error.

`decode` looks at the header before it decodes anything, so that a small file that unfolds to gigapixels costs
nothing. What it returns never depends on how the file stored its pixels: palette, grey, 16 bits, CMYK, transparency
and EXIF orientation all end as upright 8-bit RGB. Training data and the server both come through here.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from keylock.errors import ImageError

__all__ = ["FORMATS", "ImageLimits", "decode", "to_rgb"]


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What an image may cost at most.

    Attributes:
        max_bytes: Size of the file in bytes.
        max_pixels: Width times height, checked before decoding.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000


DEFAULT_LIMITS: Final = ImageLimits()

# The readers are called directly, because Image.open warns through the process-wide warning filters about sizes that
# are checked here anyhow, and because it tries every format it knows.
_READERS: Final[dict[str, tuple[Callable[[bytes], bool], Callable[[io.BytesIO], Image.Image]]]] = {
    "PNG": (lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    "JPEG": (lambda head: head.startswith(b"\xff\xd8\xff"), JpegImagePlugin.jpeg_factory),
    "WebP": (lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", WebPImagePlugin.WebPImageFile),
    "GIF": (lambda head: head[:6] in (b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    "BMP": (lambda head: head.startswith(b"BM"), BmpImagePlugin.BmpImageFile),
}
FORMATS: Final = tuple(_READERS)

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


def decode(data: bytes, *, limits: ImageLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Decodes the bytes of an image file.

    Args:
        data: A PNG, JPEG, WebP or BMP file, or a GIF file with one frame.
        limits: What the image may cost.

    Returns:
        RGB pixels, uint8 `(height, width, 3)`; transparent pixels are laid over white.

    Raises:
        ImageError: If the bytes are no such file, or are damaged, animated, without pixels or over the limits.
    """
    if not data:
        raise ImageError("the image is empty (0 bytes): send the contents of a PNG or JPEG file")
    if len(data) > limits.max_bytes:
        raise ImageError(
            f"the image file has {len(data):,} bytes and at most {limits.max_bytes:,} are accepted: send a smaller one"
        )
    format_name = _sniff(data)
    # The WebP reader allocates the canvas as soon as it is opened; the PNG reader calls no pixels damage.
    if format_name == "WebP":
        _check_size(*_webp_size(data), limits=limits)
    elif format_name == "PNG":
        _check_size(*_png_size(data), limits=limits)
    try:
        image = _READERS[format_name][1](io.BytesIO(data))
        _check_size(*image.size, limits=limits)
        # Phones write MPO files: a JPEG image followed by previews, which are not an animation.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise ImageError(f"the {format_name} image is animated: send a single frame")
        image.load()
        return to_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # The readers raise whatever the damage leads to: OSError, SyntaxError, struct.error...
        raise ImageError(
            f"the {format_name} image cannot be decoded, it is damaged or truncated: send the whole file again"
        ) from error


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Turns a decoded Pillow image of any mode into upright RGB pixels.

    Args:
        image: The image; its EXIF orientation is applied.

    Returns:
        RGB pixels, uint8 `(height, width, 3)`; transparent pixels are laid over white.

    Raises:
        ImageError: If the image has no pixels.
    """
    if not image.width or not image.height:
        raise ImageError(f"the image has no pixels ({image.width} x {image.height}): send one that has some")
    orientation = _orientation(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    return np.array(image, dtype=np.uint8)


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


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Keeps the high byte of grey values of 16 bits, as the PNG reader does for 16-bit colour.

    Pillow's own conversion clips at 255, which turns most such images white.
    """
    values = np.asarray(image)
    if image.mode == "F":
        return Image.fromarray(np.clip(np.nan_to_num(values), 0, 255).astype(np.uint8))
    return Image.fromarray((np.clip(values, 0, 65535).astype(np.uint32) >> 8).astype(np.uint8))
