"""The formats of image files: which one a file has, and what its header says before any pixel is decoded."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, cast

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from keylock.errors import ImageError
from keylock.imaging.deep_images import Opener

__all__ = ["explained", "format_of", "has_several_scans", "open_file", "opener_of", "orientation_of"]

# The readers are called directly, because Image.open warns through the process-wide warning filters about sizes that
# are checked here anyhow, and because it tries every format it knows.
_READERS: Final[dict[str, tuple[Callable[[bytes], bool], Opener]]] = {
    "PNG": (lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    "JPEG": (lambda head: head.startswith(b"\xff\xd8\xff"), JpegImagePlugin.jpeg_factory),
    "WebP": (lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", WebPImagePlugin.WebPImageFile),
    "GIF": (lambda head: head[:6] in (b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    "BMP": (lambda head: head.startswith(b"BM"), BmpImagePlugin.BmpImageFile),
    "TIFF": (lambda head: head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
}

# Compressions, sample formats and layouts that Pillow and pydicom do not know fail in them as damage does.
_OF_MANY_KINDS: Final = frozenset({"TIFF", "DICOM"})

_TILE_SIDES: Final = (322, 323)
_NEW_SUBFILE_TYPE: Final = 254
_COPY_OR_MASK: Final = 1 | 4
_LOOKED_AT_PAGES: Final = 16
_EXIF_ORIENTATION: Final = 0x0112


def format_of(data: bytes) -> str:
    """Returns the name of the format of a file.

    Raises:
        ImageError: If it has none that is read.
    """
    head = data[:16]
    for name, (matches, _) in _READERS.items():
        if matches(head):
            return name
    raise ImageError(f"the bytes are not an image file that keylock reads: send one of {', '.join(_READERS)}")


def opener_of(name: str) -> Opener:
    """Returns what opens files of a format."""
    return _READERS[name][1]


def open_file(name: str, data: bytes, check_size: Callable[[int, int], None]) -> Image.Image:
    """Opens a file of a known format, and checks everything that its header tells.

    Args:
        name: Of the format.
        data: The file.
        check_size: Called with width and height before anything is decoded; raises where they are too many.

    Raises:
        ImageError: If it is animated, has several pages or no good header.
    """
    # The WebP reader allocates the canvas as soon as it is opened; the PNG reader calls no pixels damage.
    if name == "WebP":
        check_size(*_webp_size(data))
    elif name == "PNG":
        check_size(*_png_size(data))
    image = _READERS[name][1](io.BytesIO(data))
    check_size(*image.size)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # A tile is unpacked whole, however little of it the image uses.
        check_size(*(int(image.tag_v2.get(side, 1)) for side in _TILE_SIDES))
        _check_pages(image)
    # Phones write MPO files: a JPEG image followed by previews, which are not an animation.
    elif image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageError(f"the {name} image is animated: send a single frame")
    return image


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Makes an `ImageError` of whatever a reader raises in the block, for a file of a format."""
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


def has_several_scans(image: JpegImagePlugin.JpegImageFile, data: bytes) -> bool:
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


def orientation_of(image: Image.Image) -> int:
    """Returns the EXIF orientation of an image, 1 where it says none."""
    try:
        return cast(int, image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # Damaged EXIF data is not a reason to refuse pixels that are whole.
        return 1
