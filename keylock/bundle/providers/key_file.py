"""32 secret bytes, in a file or in a variable of the environment, put through HKDF-SHA256 (RFC 5869)."""

import os
import secrets
from collections.abc import Mapping
from typing import ClassVar, Final, Literal

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keylock.bundle.providers.base import DATA_KEY_BYTES, SALT_BYTES, Entry, Provider, decode, read_text
from keylock.crypto.secrecy import wipe, write_secret_file
from keylock.crypto.signing import encode_base64url
from keylock.errors import UnsealError

__all__ = ["EnvironmentKey", "KeyFile", "KeyFileEntry"]

_CONTEXT: Final = b"keylock/v1/sealed-key"


class KeyFileEntry(Entry):
    """How the bytes of a key file are salted."""

    kind: ClassVar[str] = "a key file"
    give: ClassVar[str] = "the key file"

    name: Literal["key-file/hkdf-sha256"] = "key-file/hkdf-sha256"
    salt: str


class _SecretBytes(Provider[KeyFileEntry]):
    """32 secret bytes that seal and open."""

    __slots__ = ("_key",)

    entry = KeyFileEntry

    def __init__(self, text: str) -> None:
        """Takes 64 hexadecimal digits.

        Raises:
            ValueError: If the text is anything else.
        """
        self._key = bytearray.fromhex(text)
        if len(self._key) != DATA_KEY_BYTES:
            raise ValueError("not 64 hexadecimal digits")

    def wrap(self, context: bytes) -> tuple[KeyFileEntry, bytearray]:
        """Derives a data key under a new salt."""
        entry = KeyFileEntry(salt=encode_base64url(secrets.token_bytes(SALT_BYTES)))
        return entry, self.unwrap(entry, context)

    def unwrap(self, entry: KeyFileEntry, context: bytes) -> bytearray:
        """Derives the data key of an entry."""
        key = bytearray(DATA_KEY_BYTES)
        salt = decode(entry.salt, SALT_BYTES)
        HKDF(algorithm=SHA256(), length=DATA_KEY_BYTES, salt=salt, info=_CONTEXT).derive_into(self._key, key)
        return key

    def reveal(self) -> bytes:
        """Returns the 32 bytes."""
        return bytes(self._key)

    def close(self) -> None:
        """Wipes the 32 bytes."""
        wipe(self._key)


class KeyFile(_SecretBytes):
    """A file with 32 secret bytes, in hexadecimal, that seals and opens.

    Attributes:
        path: The file, as it was given.
    """

    __slots__ = ("path",)

    path: str

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads the file.

        Raises:
            UnsealError: If it cannot be read or does not hold 64 hexadecimal digits.
        """
        self.path = os.fspath(path)
        text = read_text(path, "key")
        try:
            super().__init__(text)
        except ValueError:
            raise UnsealError(f"the key file {self.path} does not hold 64 hexadecimal digits") from None

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> "KeyFile":
        """Writes 32 new random bytes to a new file that only its owner can read.

        Raises:
            UnsealError: If the file exists already, which is never overwritten, or cannot be created.
        """
        try:
            write_secret_file(path, secrets.token_hex(DATA_KEY_BYTES).encode("ascii") + b"\n")
        except FileExistsError:
            raise UnsealError(f"{os.fspath(path)} exists and is not overwritten: choose another path") from None
        except OSError as error:
            raise UnsealError(f"cannot write the key file {os.fspath(path)}: {error.strerror}") from None
        return cls(path)

    @property
    def name(self) -> str:
        """Names it in errors."""
        return f"the key file {self.path}"

    def __repr__(self) -> str:
        return f"KeyFile({self.path!r})"


class EnvironmentKey(_SecretBytes):
    """The content of a key file in a variable of the environment; what a key file sealed, it opens, and the reverse.

    Attributes:
        variable: The name of the variable.
    """

    __slots__ = ("variable",)

    variable: str

    def __init__(self, variable: str, environment: Mapping[str, str]) -> None:
        """Reads the variable.

        Args:
            variable: Its name.
            environment: The variables of the process.

        Raises:
            UnsealError: If it is not set or does not hold 64 hexadecimal digits.
        """
        self.variable = variable
        if not environment.get(variable):
            raise UnsealError(f"the variable {variable} is not set: give it the content of a key file")
        try:
            super().__init__(environment[variable].strip())
        except ValueError:
            raise UnsealError(f"the variable {variable} does not hold 64 hexadecimal digits") from None

    @property
    def name(self) -> str:
        """Names it in errors."""
        return f"the variable {self.variable}"

    def __repr__(self) -> str:
        return f"EnvironmentKey({self.variable!r})"
