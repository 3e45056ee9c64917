"""A passphrase, stretched with Argon2id (RFC 9106)."""

import os
import secrets
import unicodedata
from typing import Annotated, ClassVar, Final, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from pydantic import Field

from keylock.bundle.providers.base import DATA_KEY_BYTES, SALT_BYTES, Entry, Provider, decode, read_text
from keylock.crypto.secrecy import wipe
from keylock.crypto.signing import encode_base64url
from keylock.errors import UnsealError

__all__ = ["Passphrase", "PassphraseEntry"]

_MIN_PASSPHRASE: Final = 8


class PassphraseEntry(Entry):
    """How a passphrase is stretched."""

    # The limits keep a hostile file from taking all memory or hours; the defaults are RFC 9106's second choice.
    kind: ClassVar[str] = "a passphrase"
    give: ClassVar[str] = "the passphrase"

    name: Literal["argon2id"] = "argon2id"
    salt: str
    iterations: Annotated[int, Field(ge=1, le=16)] = 3
    lanes: Annotated[int, Field(ge=1, le=16)] = 4
    memory_kib: Annotated[int, Field(ge=8 * 1024, le=1024 * 1024)] = 64 * 1024


class Passphrase(Provider[PassphraseEntry]):
    """A passphrase that seals and opens; its text is never shown."""

    __slots__ = ("_text",)

    entry = PassphraseEntry

    def __init__(self, text: str) -> None:
        """Takes the passphrase; white space at its ends does not count.

        Raises:
            UnsealError: If it is shorter than 8 characters.
        """
        normal = unicodedata.normalize("NFC", text.strip())
        if len(normal) < _MIN_PASSPHRASE:
            raise UnsealError(f"the passphrase of the sealed key must have at least {_MIN_PASSPHRASE} characters")
        self._text = bytearray(normal.encode("utf-8"))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "Passphrase":
        """Returns the passphrase in a file.

        Raises:
            UnsealError: If the file cannot be read, is empty or too long, or the passphrase is too short.
        """
        return cls(read_text(path, "passphrase"))

    @property
    def name(self) -> str:
        """Names it in errors."""
        return "the passphrase"

    def wrap(self, context: bytes) -> tuple[PassphraseEntry, bytearray]:
        """Derives a data key under a new salt."""
        entry = PassphraseEntry(salt=encode_base64url(secrets.token_bytes(SALT_BYTES)))
        return entry, self.unwrap(entry, context)

    def unwrap(self, entry: PassphraseEntry, context: bytes) -> bytearray:
        """Derives the data key of an entry."""
        key = bytearray(DATA_KEY_BYTES)
        try:
            derivation = Argon2id(
                salt=decode(entry.salt, SALT_BYTES),
                length=DATA_KEY_BYTES,
                iterations=entry.iterations,
                lanes=entry.lanes,
                memory_cost=entry.memory_kib,
            )
        except UnsupportedAlgorithm:
            raise UnsealError("the cryptography package here has no Argon2id: install its wheel from PyPI") from None
        derivation.derive_into(self._text, key)  # type: ignore[arg-type]  # It takes any buffer.
        return key

    def reveal(self) -> bytes:
        """Returns the passphrase in UTF-8."""
        return bytes(self._text)

    def close(self) -> None:
        """Wipes the passphrase."""
        wipe(self._text)

    def __repr__(self) -> str:
        return "Passphrase(...)"
