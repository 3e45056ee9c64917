"""The sealed key: a key seed encrypted under a passphrase or a key file, and bound to one model.

AES-256-GCM. Its key comes from a passphrase through Argon2id (RFC 9106) or from a key file through HKDF-SHA256. The
model digest, the issuer's public key and the whole header are authenticated with it. So a sealed key does not open
when its header is changed, when it is moved to another model, or when somebody else signs the bundle as his own, whose
licenses a server that trusts any issuer would otherwise honour.
"""

import os
import secrets
import unicodedata
from typing import Annotated, Final, Literal

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from keylock.errors import UnsealError
from keylock.keys import KeySeed
from keylock.secrecy import NotSecretTextError, Opaque, read_secret_text, write_secret_file
from keylock.signing import VerifyingKey, canonical_json, decode_base64url, encode_base64url

__all__ = ["MAX_SEALED_BYTES", "KeyFile", "Passphrase", "Sealer", "seal", "unseal"]

MAX_SEALED_BYTES: Final = 16 * 1024

_KEY_BYTES: Final = 32
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_MIN_PASSPHRASE: Final = 8
_CONTEXT: Final = b"keylock/v1/sealed-key"
_WRONG: Final = "does not open the sealed key: it is the wrong one, or the key belongs to another model or issuer"


class _Argon2idEntry(BaseModel):
    # The limits keep a hostile file from taking all memory or hours; the defaults are RFC 9106's second choice.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Literal["argon2id"] = "argon2id"
    salt: str
    iterations: Annotated[int, Field(ge=1, le=16)] = 3
    lanes: Annotated[int, Field(ge=1, le=16)] = 4
    memory_kib: Annotated[int, Field(ge=8 * 1024, le=1024 * 1024)] = 64 * 1024


class _KeyFileEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Literal["key-file/hkdf-sha256"] = "key-file/hkdf-sha256"
    salt: str


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["keylock-sealed-key/v1"] = "keylock-sealed-key/v1"
    cipher: Literal["AES-256-GCM"] = "AES-256-GCM"
    kdf: Annotated[_Argon2idEntry | _KeyFileEntry, Field(discriminator="name")]
    nonce: str


class _Sealed(_Header):
    ciphertext: str


class Passphrase(Opaque):
    """A passphrase that seals and opens; its text is never shown."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        """Takes the passphrase; white space at its ends does not count.

        Raises:
            UnsealError: If it is shorter than 8 characters.
        """
        self._text = unicodedata.normalize("NFC", text.strip())
        if len(self._text) < _MIN_PASSPHRASE:
            raise UnsealError(f"the passphrase of the sealed key must have at least {_MIN_PASSPHRASE} characters")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "Passphrase":
        """Returns the passphrase in a file.

        Raises:
            UnsealError: If the file cannot be read, is empty or too long, or the passphrase is too short.
        """
        return cls(_read_text(path, "passphrase"))

    def reveal(self) -> bytes:
        """Returns the passphrase in UTF-8."""
        return self._text.encode("utf-8")

    def __repr__(self) -> str:
        return "Passphrase(...)"


class KeyFile(Opaque):
    """A file with 32 secret bytes, in hexadecimal, that seals and opens.

    Attributes:
        path: The file, as it was given.
    """

    __slots__ = ("_key", "path")

    path: str

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads the file.

        Raises:
            UnsealError: If it cannot be read or does not hold 64 hexadecimal digits.
        """
        self.path = os.fspath(path)
        try:
            self._key = bytes.fromhex(_read_text(path, "key"))
        except ValueError:
            self._key = b""
        if len(self._key) != _KEY_BYTES:
            raise UnsealError(f"the key file {self.path} does not hold 64 hexadecimal digits") from None

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> "KeyFile":
        """Writes 32 new random bytes to a new file that only its owner can read.

        Raises:
            UnsealError: If the file exists already, which is never overwritten, or cannot be created.
        """
        try:
            write_secret_file(path, secrets.token_hex(_KEY_BYTES).encode("ascii") + b"\n")
        except FileExistsError:
            raise UnsealError(f"{os.fspath(path)} exists and is not overwritten: choose another path") from None
        except OSError as error:
            raise UnsealError(f"cannot write the key file {os.fspath(path)}: {error.strerror}") from None
        return cls(path)

    def reveal(self) -> bytes:
        """Returns the 32 bytes."""
        return self._key

    def __repr__(self) -> str:
        return f"KeyFile({self.path!r})"


Sealer = Passphrase | KeyFile


def seal(seed: KeySeed, *, model_digest: str, issuer: VerifyingKey, sealer: Sealer) -> bytes:
    """Returns the content of `key.sealed`.

    Args:
        seed: What to seal.
        model_digest: The model it will open for, and no other.
        issuer: The key that signs the bundle; under another signature it will not open.
        sealer: What will open it.

    Raises:
        UnsealError: If this machine's OpenSSL has no Argon2id.
    """
    salt = encode_base64url(secrets.token_bytes(_SALT_BYTES))
    kdf = _Argon2idEntry(salt=salt) if isinstance(sealer, Passphrase) else _KeyFileEntry(salt=salt)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    header = _Header(kdf=kdf, nonce=encode_base64url(nonce))
    cipher = AESGCM(_derive(header, sealer))
    ciphertext = cipher.encrypt(nonce, seed.reveal(), _associated_data(header, model_digest, issuer))
    return canonical_json({**header.model_dump(), "ciphertext": encode_base64url(ciphertext)})


def unseal(content: bytes, *, model_digest: str, issuer: VerifyingKey, sealer: Sealer) -> KeySeed:
    """Returns the seed in the content of `key.sealed`.

    Args:
        content: Bytes of the file.
        model_digest: The model at hand.
        issuer: The key that signed the bundle at hand.
        sealer: What it was sealed with.

    Raises:
        UnsealError: If the content is malformed, was sealed with something else, for another model or
            by another issuer, or asks for
            more memory or time than any honest file.
    """
    sealed = _parse(content)
    header = _Header(kdf=sealed.kdf, nonce=sealed.nonce)
    nonce, ciphertext = _decode(sealed.nonce, _NONCE_BYTES), _decode(sealed.ciphertext, _KEY_BYTES + _TAG_BYTES)
    try:
        secret = AESGCM(_derive(header, sealer)).decrypt(
            nonce, ciphertext, _associated_data(header, model_digest, issuer)
        )
    except InvalidTag:
        what = "the passphrase" if isinstance(sealer, Passphrase) else f"the key file {sealer.path}"
        raise UnsealError(f"{what} {_WRONG}") from None
    return KeySeed(secret)


def _parse(content: bytes) -> _Sealed:
    if len(content) > MAX_SEALED_BYTES:
        raise UnsealError("the sealed key is malformed: it is too long")
    try:
        return _Sealed.model_validate_json(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its JSON"
        raise UnsealError(f"the sealed key is malformed: {where} is not what it must be") from None


def _derive(header: _Header, sealer: Sealer) -> bytes:
    """Returns the 32 bytes of the AES key."""
    kdf = header.kdf
    salt = _decode(kdf.salt, _SALT_BYTES)
    if isinstance(kdf, _Argon2idEntry):
        if not isinstance(sealer, Passphrase):
            raise UnsealError("the key was sealed with a passphrase, not with a key file: give the passphrase")
        try:
            derivation = Argon2id(
                salt=salt, length=_KEY_BYTES, iterations=kdf.iterations, lanes=kdf.lanes, memory_cost=kdf.memory_kib
            )
        except UnsupportedAlgorithm:
            raise UnsealError("the cryptography package here has no Argon2id: install its wheel from PyPI") from None
        return derivation.derive(sealer.reveal())
    if not isinstance(sealer, KeyFile):
        raise UnsealError("the key was sealed with a key file, not with a passphrase: give the key file")
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=salt, info=_CONTEXT).derive(sealer.reveal())


def _associated_data(header: _Header, model_digest: str, issuer: VerifyingKey) -> bytes:
    public_key = issuer.to_jwk()["x"]
    return b"\n".join((_CONTEXT, canonical_json(header.model_dump()), model_digest.encode(), public_key.encode()))


def _decode(text: str, length: int) -> bytes:
    try:
        data = decode_base64url(text)
    except ValueError:
        data = b""
    if len(data) != length:
        raise UnsealError("the sealed key is malformed: a salt, nonce or ciphertext has the wrong length")
    return data


def _read_text(path: str | os.PathLike[str], kind: str) -> str:
    try:
        return read_secret_text(path)
    except OSError as error:
        why = error.strerror or "unreadable"
        raise UnsealError(f"cannot read the {kind} file {os.fspath(path)}: {why}") from None
    except NotSecretTextError as error:
        raise UnsealError(f"{os.fspath(path)} is no {kind} file: {error}") from None
