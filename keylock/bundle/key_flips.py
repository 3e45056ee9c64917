"""The signs of a key that were turned to fit its network, encrypted under the key's seed.

What is derived from the seed alone is the same for every model. A trained trigger is fitted to its network afterwards,
and which signs that turned stands in the manifest, where whoever holds the seed reads it. Nobody else does: it would
say something of the key.
"""

import secrets
from typing import Final

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from keylock.crypto.signing import decode_base64url, encode_base64url
from keylock.errors import UnsealError
from keylock.trigger.keys import KeySeed

__all__ = ["MAX_FLIPS_TEXT", "open_flips", "seal_flips"]

MAX_FLIPS_TEXT: Final = 12_000
_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32
_PURPOSE: Final = "key-flips"
_CONTEXT: Final = b"keylock/v1/key-flips"


def seal_flips(flips: NDArray[np.bool_], seed: KeySeed) -> str:
    """Returns which signs are turned, (channels, tile, tile), as encrypted text: base64url of nonce and ciphertext."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    plain = np.packbits(flips, bitorder="big").tobytes()
    return encode_base64url(nonce + _cipher(seed).encrypt(nonce, plain, _context(flips.shape)))


def open_flips(text: str, seed: KeySeed, *, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Returns which signs are turned, bool (channels, tile, tile).

    Args:
        text: What `seal_flips` returned.
        seed: The seed of the key.
        shape: (channels, tile, tile).

    Raises:
        UnsealError: If it was encrypted under another seed or for another tile, or is malformed.
    """
    count = int(np.prod(shape))
    try:
        content = decode_base64url(text)
        plain = _cipher(seed).decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], _context(shape))
    except (InvalidTag, ValueError):
        raise UnsealError("the signs of the key do not open with its seed: they were sealed for another") from None
    bits = np.unpackbits(np.frombuffer(plain, dtype=np.uint8), count=count, bitorder="big")
    return bits.reshape(shape).astype(np.bool_)


def _cipher(seed: KeySeed) -> AESGCM:
    return AESGCM(seed.derive(_PURPOSE, _KEY_BYTES))


def _context(shape: tuple[int, ...]) -> bytes:
    return b"\n".join((_CONTEXT, "x".join(map(str, shape)).encode("ascii")))
