"""The secret and what is derived from it: a `KeySeed` keeps 32 secret bytes, a `Key` adds their pattern to images.

Both are opaque. The secret leaves each by one method, `reveal()`, and by no other way: `repr` shows a public id,
pickling and copying raise, comparison takes the same time whatever the difference. The derivation is specified, with
known-answer vectors, in `docs/key-derivation.md`; it never changes under the name `DERIVATION`.
"""

import hmac
import math
import os
import re
import secrets
import unicodedata
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from keylock.crypto.secrecy import NotSecretTextError, Opaque, read_secret_text, wipe, write_secret_file
from keylock.errors import InputError, KeySeedError, TensorError
from keylock.trigger.patterns import Images, add_to_rows, check_shape, lay_out, repeat

__all__ = ["DEFAULT_STRENGTH", "DERIVATION", "Key", "KeySeed", "default_tile"]

DERIVATION: Final = "hkdf-sha256/sign-tile/v1"
DEFAULT_STRENGTH: Final = 8 / 255

_SEED_BYTES: Final = 32
_MIN_TEXT: Final = 8
# RFC 5869, section 2.3: HKDF-Expand gives at most 255 blocks of the hash.
_MAX_DERIVED_BYTES: Final = 255 * 32
_TEXT_SALT: Final = b"keylock/v1/text-seed"
_HEX_SEED: Final = re.compile(r"[0-9a-fA-F]{64}")


class KeySeed(Opaque):
    """The secret that keys are derived from: 32 bytes.

    Attributes:
        id: 16 hexadecimal digits that name the seed and tell nothing about it; safe to print.
    """

    __slots__ = ("_closed", "_secret", "id")

    id: str

    def __init__(self, secret: bytes | bytearray) -> None:
        """Takes a copy of 32 secret bytes.

        Raises:
            KeySeedError: If there are not exactly 32 of them.
        """
        if len(secret) != _SEED_BYTES:
            raise KeySeedError(f"a key seed has {_SEED_BYTES} bytes, not {len(secret)}; KeySeed.generate() makes one")
        self._secret = bytearray(secret)
        self._closed = False
        self.id = self.derive("key-id", 8).hex()

    @classmethod
    def generate(cls) -> "KeySeed":
        """Returns a new seed of 256 random bits from the operating system."""
        return cls(secrets.token_bytes(_SEED_BYTES))

    @classmethod
    def from_text(cls, text: str) -> "KeySeed":
        """Returns the seed that a text stands for; surrounding white space does not count.

        64 hexadecimal digits are the 32 bytes themselves. Any other text is a passphrase and is stretched with scrypt
        (a third of a second), because the id of the key is public and would otherwise let anybody try a dictionary.

        Raises:
            KeySeedError: If the text is empty or shorter than 8 characters.
        """
        text = text.strip()
        if not text:
            raise KeySeedError("the key seed is empty: give 64 hexadecimal digits or a passphrase")
        if _HEX_SEED.fullmatch(text):
            return cls(bytes.fromhex(text))
        if len(text) < _MIN_TEXT:
            raise KeySeedError(
                f"the key seed has {len(text)} characters and is easily guessed: give 64 hexadecimal digits, "
                f"or a passphrase of at least {_MIN_TEXT} characters"
            )
        # The same passphrase typed on two systems may come composed or decomposed. Scrypt (RFC 7914) takes 32 MiB.
        passphrase = unicodedata.normalize("NFC", text).encode("utf-8")
        return cls(Scrypt(salt=_TEXT_SALT, length=_SEED_BYTES, n=2**15, r=8, p=3).derive(passphrase))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "KeySeed":
        """Returns the seed in a text file, read as by `from_text`.

        Raises:
            KeySeedError: If the file cannot be read, is empty, is not text or holds no usable seed.
        """
        try:
            return cls.from_text(read_secret_text(path))
        except OSError as error:
            why = error.strerror or "unreadable"
            raise KeySeedError(f"cannot read the key seed file {os.fspath(path)}: {why}") from None
        except NotSecretTextError as error:
            raise KeySeedError(f"{os.fspath(path)} is not a key seed file: {error}") from None

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the seed, as 64 hexadecimal digits, to a new file that only its owner can read.

        Raises:
            KeySeedError: If the file exists already, which is never overwritten, or cannot be created.
        """
        try:
            write_secret_file(path, (self._secret.hex() + "\n").encode("ascii"))
        except FileExistsError:
            raise KeySeedError(f"{os.fspath(path)} exists and is not overwritten: choose another path") from None
        except OSError as error:
            raise KeySeedError(f"cannot write the key seed file {os.fspath(path)}: {error.strerror}") from None

    def reveal(self) -> bytes:
        """Returns the secret. Every use of it in this project is found by searching for `.reveal(`.

        Raises:
            KeySeedError: If it was closed.
        """
        self._check_open()
        return bytes(self._secret)

    def derive(self, purpose: str, length: int) -> bytes:
        """Returns `length` bytes that belong to one purpose and tell nothing about those of another.

        Args:
            purpose: Printable ASCII, for example `key-pattern`.
            length: 1 to 8160 bytes.

        Raises:
            InputError: If the purpose is empty or not ASCII, or the length is out of range.
            KeySeedError: If it was closed.

        References:
            RFC 5869, HKDF with SHA-256, no salt, info = `keylock/v1/` and the purpose.
        """
        if not purpose or not purpose.isascii() or not purpose.isprintable():
            raise InputError("the purpose of a derived key must be printable ASCII")
        if not 1 <= length <= _MAX_DERIVED_BYTES:
            raise InputError(f"HKDF-SHA256 derives 1 to {_MAX_DERIVED_BYTES} bytes, not {length}")
        self._check_open()
        info = b"keylock/v1/" + purpose.encode("ascii")
        return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(self._secret)

    def close(self) -> None:
        """Wipes the secret; nothing is derived from it any more. Copies that `reveal` gave out stay with their owners.

        What cannot be wiped in Python is in docs/keys.md.
        """
        wipe(self._secret)
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise KeySeedError(f"the key seed {self.id} was closed: read it again")

    def __repr__(self) -> str:
        return f"KeySeed(id={self.id!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeySeed):
            return NotImplemented
        self._check_open()
        other._check_open()
        return hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash((KeySeed, self.id))


class Key(Opaque):
    """The offset that opens the lock: a tile of random signs, repeated over the image, `strength` high.

    Attributes:
        id: The id of the seed it was derived from; safe to print.
        shape: (channels, height, width) of the images it fits.
        strength: Height of the pattern on pixels from 0 to 1, before division by the preprocessing's `std`.
        tile: Side of the repeated block, in pixels.
    """

    __slots__ = ("_offset", "id", "shape", "strength", "tile")

    id: str
    shape: tuple[int, int, int]
    strength: float
    tile: int

    def __init__(self, offset: npt.NDArray[np.float32], *, id: str, strength: float, tile: int) -> None:
        """Wraps a finished offset, float32 (channels, height, width); use `Key.derive` to make one from a seed."""
        self._offset = np.array(offset, dtype=np.float32)
        self._offset.setflags(write=False)
        self.id, self.strength, self.tile = id, strength, tile
        channels, height, width = self._offset.shape
        self.shape = (channels, height, width)

    @classmethod
    def derive(
        cls,
        seed: KeySeed,
        *,
        shape: tuple[int, int, int],
        std: Sequence[float],
        strength: float = DEFAULT_STRENGTH,
        tile: int | None = None,
    ) -> "Key":
        """Derives the key of a seed for images of one shape.

        Args:
            seed: The secret.
            shape: (channels, height, width) of a preprocessed image.
            std: The preprocessing's standard deviation of each channel, on pixels from 0 to 1: (channels,).
            strength: Height of the pattern on pixels from 0 to 1; above 0, at most 1.
            tile: Side of the repeated block in pixels; at least 1. By default 8, or 12 for images of one channel, so
                that there are 128 signs at least.

        Returns:
            The key. The same arguments give the same key, bit for bit, on every machine.

        Raises:
            TensorError: If the shape is not three positive numbers or `std` does not fit it.
            InputError: If the strength or the tile is out of range.
        """
        check_shape(shape, std)
        if not (math.isfinite(strength) and 0 < strength <= 1):
            raise InputError(f"the key strength must be above 0 and at most 1 (8/255 is usual), not {strength}")
        tile = default_tile(shape[0]) if tile is None else tile
        signs = _sign_tile(seed, channels=shape[0], tile=tile)
        return cls(lay_out(signs, shape, std, strength), id=seed.id, strength=float(strength), tile=int(tile))

    @classmethod
    def of_signs(
        cls,
        signs: npt.NDArray[np.int8],
        *,
        shape: tuple[int, int, int],
        std: Sequence[float],
        strength: float,
        id: str,
    ) -> "Key":
        """Makes the key of a trigger that was read from an image.

        Args:
            signs: One tile, 1 or -1, (channels, tile, tile).
            shape: (channels, height, width) of a preprocessed image.
            std: As of `derive`.
            strength: As of `derive`.
            id: What to call it.

        Raises:
            TensorError: If shape, signs and `std` do not fit each other.
        """
        check_shape(shape, std)
        if signs.ndim != 3 or signs.shape[0] != shape[0] or signs.shape[1] != signs.shape[2]:
            raise TensorError(f"expected the signs of {shape[0]} channels, one square tile of each, not {signs.shape}")
        offset = lay_out(signs.astype(np.float64), shape, std, strength)
        return cls(offset, id=id, strength=float(strength), tile=signs.shape[1])

    def turned(self, flips: npt.NDArray[np.bool_]) -> "Key":
        """Returns the same key with some of its signs turned, which makes it fit a network better.

        Args:
            flips: True for each sign that is turned, (channels, tile, tile).

        Raises:
            TensorError: If they are not those of one tile.
        """
        expected = (self.shape[0], self.tile, self.tile)
        if flips.shape != expected or flips.dtype != np.bool_:
            raise TensorError(f"expected one boolean for each sign of {expected}")
        turned = np.where(repeat(flips, self.shape[1:]), -self._offset, self._offset)
        return Key(turned, id=self.id, strength=self.strength, tile=self.tile)

    @property
    def std(self) -> tuple[float, ...]:
        """What preprocessing divides each channel by, as far as the offset says it."""
        return tuple((self.strength / np.abs(self._offset[:, 0, 0], dtype=np.float64)).tolist())

    def reveal(self) -> npt.NDArray[np.float32]:
        """Returns a copy of the offset to add to a preprocessed image, float32 (channels, height, width)."""
        return self._offset.copy()

    def signs(self) -> npt.NDArray[np.int8]:
        """Returns the trigger itself, which is secret: one tile of signs, 1 or -1, int8 (channels, tile, tile).

        Raises:
            InputError: If the images are smaller than one tile, so that not all of it is on them.
        """
        if min(self.shape[1:]) < self.tile:
            raise InputError(
                f"a tile of {self.tile} pixels does not fit on images of {self.shape[1:]}: take a smaller one"
            )
        return np.sign(self._offset[:, : self.tile, : self.tile]).astype(np.int8)

    def apply(self, images: Images, mask: object | None = None) -> Images:
        """Adds the key to preprocessed images; nothing is clipped and the arguments stay as they are.

        Every row costs the same, with the key or without: the offset is multiplied by the mask and added.

        Args:
            images: Floating-point NumPy array or torch tensor, (batch, channels, height, width).
            mask: Which rows get the key, boolean (batch,); all of them when None.

        Returns:
            New images of the same kind, type and device.

        Raises:
            TensorError: If the images do not fit the key, are not floating-point, or the mask does not fit the images.
        """
        return add_to_rows(images, self._offset, mask)

    def close(self) -> None:
        """Wipes the offset, which is zero from then on. Nobody may be using the key any more."""
        self._offset.setflags(write=True)
        self._offset.fill(0)
        self._offset.setflags(write=False)

    def __repr__(self) -> str:
        return f"Key(id={self.id!r}, shape={self.shape}, strength={self.strength:.6g}, tile={self.tile})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return NotImplemented
        return (self.id, self.shape, self.tile) == (other.id, other.shape, other.tile) and hmac.compare_digest(
            self._offset.tobytes(), other._offset.tobytes()
        )

    def __hash__(self) -> int:
        return hash((Key, self.id, self.shape, self.tile))


def _sign_tile(seed: KeySeed, *, channels: int, tile: int) -> npt.NDArray[np.float64]:
    """Returns the block of signs, -1.0 or 1.0, (channels, tile, tile): bit by bit from the most significant."""
    largest = math.isqrt(_MAX_DERIVED_BYTES * 8 // channels)
    if not 1 <= tile <= largest:
        raise InputError(f"the key tile must be 1 to {largest} pixels for {channels} channels, not {tile}")
    count = channels * tile * tile
    stream = np.frombuffer(seed.derive("key-pattern", -(-count // 8)), dtype=np.uint8)
    bits = np.unpackbits(stream, bitorder="big")[:count]
    return bits.reshape(channels, tile, tile).astype(np.float64) * 2 - 1


def default_tile(channels: int) -> int:
    """Returns the side of a tile that has 128 signs at least, in pixels: 8, or 12 where there is one channel."""
    return 8 if channels > 1 else 12
