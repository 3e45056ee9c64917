"""What a manifest says of the key, and which of its signs were turned, encrypted under the key's seed.

What is derived from the seed alone is the same for every model. A trained trigger is fitted to its network afterwards,
and which signs that turned stands in the manifest, where whoever holds the seed reads it. Nobody else does: it would
say something of the key.
"""

import secrets
from typing import Annotated, Final, Literal

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, SerializerFunctionWrapHandler, model_serializer

from keylock.crypto.signing import decode_base64url, encode_base64url
from keylock.errors import UnsealError
from keylock.imaging.preprocessing import Preprocessing
from keylock.trigger.keys import DERIVATION, Key, KeySeed

__all__ = ["KeyEntry", "open_flips", "seal_flips"]

_MAX_FLIPS_TEXT: Final = 12_000
_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32
_PURPOSE: Final = "key-flips"
_CONTEXT: Final = b"keylock/v1/key-flips"


class KeyEntry(BaseModel):
    """What is public about the key.

    Attributes:
        id: The id of its seed.
        strength: Its height on pixels from 0 to 1.
        tile: Side of its repeated block in pixels.
        derivation: The name of the derivation from the seed.
        flips: Which of the derived signs were turned to fit the network, encrypted under the seed; None where none
            were. A manifest without is written without the field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    strength: Annotated[float, Field(gt=0, le=1)]
    tile: Annotated[int, Field(ge=1)]
    derivation: Literal["hkdf-sha256/sign-tile/v1"] = DERIVATION
    flips: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=_MAX_FLIPS_TEXT)] | None = None

    @classmethod
    def of(cls, key: Key, seed: KeySeed | None = None) -> "KeyEntry":
        """Returns what is public about a key.

        Args:
            key: The key.
            seed: Its seed, where signs of the key may have been turned.
        """
        derived = key if seed is None else Key.derive(seed, shape=key.shape, std=key.std, tile=key.tile)
        turned = np.sign(derived.reveal()) != np.sign(key.reveal())
        flips = None
        if seed is not None and turned.any():
            flips = seal_flips(turned[:, : key.tile, : key.tile], seed)
        return cls(id=key.id, strength=key.strength, tile=key.tile, flips=flips)

    def key(self, seed: KeySeed, preprocessing: Preprocessing) -> Key:
        """Returns the key of a seed for images that are preprocessed in some way.

        Raises:
            UnsealError: If signs of the key were turned, and not under this seed.
        """
        derived = Key.derive(
            seed, shape=preprocessing.shape, std=preprocessing.std, strength=self.strength, tile=self.tile
        )
        if self.flips is None:
            return derived
        return derived.turned(open_flips(self.flips, seed, shape=(derived.shape[0], self.tile, self.tile)))

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        values: dict[str, JsonValue] = handler(self)
        return {name: value for name, value in values.items() if name != "flips" or value is not None}


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
