"""What every key provider has in common."""

import os
import secrets
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, ClassVar, Final, Generic, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

from keylock.crypto.secrecy import NotSecretTextError, Opaque, read_secret_text
from keylock.crypto.signing import decode_base64url
from keylock.errors import UnsealError

__all__ = ["DATA_KEY_BYTES", "SALT_BYTES", "Entry", "Provider", "Sealer", "decode", "new_data_key", "read_text"]

DATA_KEY_BYTES: Final = 32
SALT_BYTES: Final = 16


class Entry(BaseModel):
    """What a sealed key says about how it was sealed; each kind of provider has its own.

    Attributes:
        kind: With what it was sealed, in words.
        give: What opens it, in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: ClassVar[str]
    give: ClassVar[str]


E = TypeVar("E", bound=Entry)


class Provider(Opaque, ABC, Generic[E]):
    """A key provider that writes and reads one kind of entry.

    Attributes:
        entry: The class of the entries.
    """

    __slots__ = ()

    entry: ClassVar[type[Entry]]

    @property
    @abstractmethod
    def name(self) -> str:
        """Names it in errors: `the key file ...`."""

    @abstractmethod
    def wrap(self, context: bytes) -> tuple[E, bytearray]:
        """Makes a data key.

        Args:
            context: What it is for; another context does not find it again, where the provider can see to that.

        Returns:
            How to find it again, and its 32 bytes, which the caller wipes.

        Raises:
            UnsealError: If that cannot be done here.
        """

    @abstractmethod
    def unwrap(self, entry: E, context: bytes) -> bytearray:
        """Finds a data key again.

        Args:
            entry: What `wrap` returned.
            context: The same.

        Returns:
            Its 32 bytes, which the caller wipes; not necessarily the right ones, which decryption will tell.

        Raises:
            UnsealError: If it cannot be found.
            InvalidTag: If this is not what sealed it.
        """

    def close(self) -> None:
        """Wipes the secret, where it holds one; it opens nothing any more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Sealer: TypeAlias = Provider[Any]
"""Any key provider."""


def new_data_key() -> bytearray:
    """Returns 32 random bytes."""
    return bytearray(secrets.token_bytes(DATA_KEY_BYTES))


def decode(text: str, length: int | None = None) -> bytes:
    """Returns the bytes of a field of a sealed key.

    Raises:
        UnsealError: If it is not base64url, or has another length.
    """
    try:
        data = decode_base64url(text)
    except ValueError:
        data = b""
    if not data or (length is not None and len(data) != length):
        raise UnsealError("the sealed key is malformed: a salt, nonce or ciphertext has the wrong length")
    return data


def read_text(path: str | os.PathLike[str], kind: str) -> str:
    """Returns the text of a small secret file.

    Args:
        path: The file.
        kind: What it is, for errors.

    Raises:
        UnsealError: If it cannot be read, is empty, too long or no text.
    """
    try:
        return read_secret_text(path)
    except OSError as error:
        why = error.strerror or "unreadable"
        raise UnsealError(f"cannot read the {kind} file {os.fspath(path)}: {why}") from None
    except NotSecretTextError as error:
        raise UnsealError(f"{os.fspath(path)} is not a {kind} file: {error}") from None
