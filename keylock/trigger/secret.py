"""From the signs of a trigger to 32 secret bytes, and how large a tile must be for that to be safe."""

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keylock.errors import InputError, TensorError

__all__ = ["MIN_SIGNS", "check_signs", "check_tile", "least_tile", "trigger_secret"]

MIN_SIGNS: Final = 128
"""How many signs a trigger must have: each is one secret bit, and fewer could be guessed."""

_SECRET_BYTES: Final = 32


def least_tile(channels: int) -> int:
    """Return the least side of a tile, in pixels, that has 128 signs: 7 for three channels, 12 for one.

    Raises:
        InputError: There is not at least one channel.
    """
    if channels < 1:
        raise InputError(f"an image has at least 1 channel, not {channels}")
    return math.isqrt(-(-MIN_SIGNS // channels) - 1) + 1


def check_tile(channels: int, tile: int) -> None:
    """Check that a trigger of this tile has at least 128 signs.

    Raises:
        InputError: It has fewer; says which tile is large enough.
    """
    least = least_tile(channels)
    if tile < least:
        raise InputError(
            f"a trigger with a tile of {tile} pixels and {channels} channel{'s' if channels > 1 else ''} has "
            f"{channels * max(tile, 0) ** 2} signs and could be guessed: use a tile of at least {least} pixels, "
            f"which has {channels * least**2}"
        )


def trigger_secret(signs: npt.ArrayLike) -> bytes:
    """Return the secret that the signs of a trigger stand for.

    Args:
        signs: -1 or 1, (channels, tile, tile).

    Returns:
        32 bytes. Signs that differ anywhere give bytes that tell nothing about each other.

    Raises:
        TensorError: The array has another shape, or values other than -1 and 1.
        InputError: There are fewer than 128 signs.

    References:
        docs/trigger.md, section 6; RFC 5869.
    """
    array = check_signs(signs)
    channels, tile = array.shape[:2]
    packed = np.packbits(array.ravel() > 0, bitorder="big").tobytes()
    info = f"keylock/v1/trigger/{channels}x{tile}x{tile}".encode("ascii")
    return HKDF(algorithm=SHA256(), length=_SECRET_BYTES, salt=None, info=info).derive(packed)


def check_signs(signs: npt.ArrayLike) -> npt.NDArray[np.int8]:
    """Check the signs of a trigger, and return them as int8 (channels, tile, tile).

    Raises:
        TensorError: The array has another shape, or values other than -1 and 1.
        InputError: There are fewer than 128 signs.
    """
    array = np.asarray(signs)
    if array.ndim != 3 or array.shape[1] != array.shape[2]:
        raise TensorError(f"the signs of a trigger have the shape (channels, tile, tile), not {array.shape}")
    check_tile(array.shape[0], array.shape[1])
    if array.dtype.kind not in "if" or not np.isin(array, (-1, 1)).all():
        raise TensorError("the signs of a trigger are the numbers -1 and 1, and some of these are neither")
    return array.astype(np.int8)
