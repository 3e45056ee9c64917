"""Pixels of more than eight bits, out of PNG and TIFF files that Pillow opened.

Pillow reads grey values of 16 bits as they are, and of 16-bit colours the high bytes alone. For these the file is
decoded twice, once as if its bytes came in the other order, which gives the low bytes.
"""

import io
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from keylock.errors import ImageError

__all__ = ["Opener", "deep_values", "is_deep", "stated_bits"]

Opener = Callable[[io.BytesIO], ImageFile.ImageFile]

_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE, _S_MAX_SAMPLE, _SAMPLE_FORMAT = 258, 262, 281, 341, 339
_MIN_IS_WHITE: Final = 0
_UNSIGNED: Final = 1
_LOW_BYTES: Final = {"16L": "16B", "16B": "16L", "16N": "16B" if sys.byteorder == "little" else "16L"}


def is_deep(image: Image.Image) -> bool:
    """Returns whether an opened image has more than eight bits in a channel."""
    if image.mode.startswith("I") or image.mode == "F":
        return True
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(_numbers(image, _BITS_PER_SAMPLE, 1)) > 8
    return "16" in _raw_mode(image)


def stated_bits(image: Image.Image, data: bytes, values: NDArray[Any]) -> int | None:
    """Returns how many bits the file says that its values have, or None where it says nothing beyond 16.

    The significant bits of a PNG file are those of the original; what is in the file was scaled to all 16. Cameras
    state them beside values that they did not scale, which values between the steps of the scaling give away.

    Args:
        image: The opened image.
        data: The file.
        values: What `deep_values` returned of it.

    References:
        PNG specification, sections 11.3.2.5 (sBIT), 12.4 and 13.12 (sample depth scaling); TIFF 6.0, pages 29
        (BitsPerSample) and 36 (MaxSampleValue).
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _tiff_bits(image)
    bits = _significant_bits(data)
    return None if bits is None or _is_scaled(values if values.ndim == 2 else values[..., :3], bits) else bits


def deep_values(image: Image.Image, data: bytes, reopen: Opener) -> NDArray[Any]:
    """Decodes values of more than eight bits.

    Args:
        image: The opened image, one for which `is_deep` is true.
        data: The file.
        reopen: Opens the file once more.

    Returns:
        Integers `(height, width)` of grey or `(height, width, 3 or 4)` of colour, the fourth being opacity of 16 bits.

    Raises:
        ImageError: The values are floats, have a sign or a layout that is not read.
    """
    if image.mode == "F":
        raise ImageError("the image has floating-point values, which have no scale: save it with 8 or 16 bits")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image)
    if image.mode.startswith("I"):
        image.load()
        values = np.asarray(image)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and _numbers(image, _PHOTOMETRIC, 1)[0] == _MIN_IS_WHITE:
            bits = _tiff_bits(image) or 16
            values = (2**bits - 1) - values.astype(np.int32)
        return values
    return _colour(image, data, reopen)


def _colour(image: Image.Image, data: bytes, reopen: Opener) -> NDArray[np.uint16]:
    raw, order = _raw_mode(image), _raw_mode(image)[-3:]
    if image.mode not in ("RGB", "RGBA") or raw != f"{image.mode};{order}" or order not in _LOW_BYTES:
        raise ImageError("the image has 16 bits in a layout that is not read: save it as grey or RGB, or with 8 bits")
    low, swapped = reopen(io.BytesIO(data)), f"{image.mode};{_LOW_BYTES[order]}"
    low.tile = [tile._replace(args=_with_raw_mode(tile.args, swapped)) for tile in low.tile]
    image.load()
    low.load()
    values: NDArray[np.uint16] = np.asarray(image).astype(np.uint16) << 8 | np.asarray(low)
    return values


def _raw_mode(image: Image.Image) -> str:
    """Returns Pillow's name for how the pixels lie in the file."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    args = tiles[0].args if tiles else None
    found = args[0] if isinstance(args, tuple) and args else args
    return found if isinstance(found, str) else ""


def _with_raw_mode(args: Any, raw: str) -> Any:  # noqa: ANN401 - a text or a tuple, as the codec wants it
    return (raw, *args[1:]) if isinstance(args, tuple) else raw


def _check_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    if max(_numbers(image, _BITS_PER_SAMPLE, 1)) > 16:
        raise ImageError("the TIFF image has more than 16 bits in a channel: save it with 8 or 16 bits")
    if set(_numbers(image, _SAMPLE_FORMAT, _UNSIGNED)) != {_UNSIGNED}:
        raise ImageError("the TIFF image has values with a sign, which have no scale: shift them to start at 0")


def _tiff_bits(image: TiffImagePlugin.TiffImageFile) -> int | None:
    bits = max(_numbers(image, _BITS_PER_SAMPLE, 1))
    if 8 < bits < 16:
        return bits
    highest = max(0, *_numbers(image, _MAX_SAMPLE, 0), *_numbers(image, _S_MAX_SAMPLE, 0))
    # By the book this is the highest value that is used. Only where it ends a number of bits it tells the scale.
    ends_bits = highest & (highest + 1) == 0
    return highest.bit_length() if ends_bits and 2**8 <= highest < 2**16 - 1 else None


def _numbers(image: TiffImagePlugin.TiffImageFile, tag: int, default: int) -> list[int]:
    found = image.tag_v2.get(tag, default)
    return [int(number) for number in (found if isinstance(found, tuple) else (found,))] or [default]


def _is_scaled(values: NDArray[Any], bits: int) -> bool:
    """Returns whether low values are all numbers of so many bits, scaled to 16 bits in one of the usual ways."""
    if int(values.max()) >> bits:
        return False  # They contradict the statement, which `GreyLevels` takes note of.
    is_used = np.zeros(2**bits, np.bool_)
    is_used[values] = True
    used = np.flatnonzero(is_used)
    original = used >> (16 - bits)
    exact = original * (2**16 - 1) / (2**bits - 1)
    shifted = original << (16 - bits)
    ways = (shifted, shifted | original >> (2 * bits - 16), np.rint(exact), np.floor(exact))
    return any(np.array_equal(used, way) for way in ways)


def _significant_bits(data: bytes) -> int | None:
    """Reads the sBIT chunk of a PNG file, which comes before the pixels."""
    place = 8
    while place + 8 <= len(data):
        length, name = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if name == b"sBIT":
            bits = max(data[place + 8 : place + 8 + min(length, 3)], default=16)
            return bits if 8 <= bits < 16 else None
        if name == b"IDAT":
            return None
        place += 12 + length
    return None
