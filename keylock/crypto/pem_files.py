"""PEM files of keys of any kind: reading, writing, and what is said where that fails."""

import os

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

from keylock.crypto.key_parsing import damage_is_a_value_error
from keylock.crypto.secrecy import MAX_SECRET_FILE_BYTES, NotSecretTextError, read_secret_text, write_secret_file
from keylock.errors import KeylockError, SignatureError
from keylock.files.atomic import PUBLIC, write_file
from keylock.text.small_files import ChangedTextError, repair_pem

__all__ = ["pem_of", "read_pem", "read_public_key", "write_private_key", "write_public_key"]


def read_pem(path: str | os.PathLike[str], *, max_bytes: int = MAX_SECRET_FILE_BYTES) -> str:
    """Returns the text of a file.

    Raises:
        SignatureError: If it cannot be read, is too long or is no text.
    """
    try:
        return read_secret_text(path, max_bytes=max_bytes)
    except OSError as error:
        raise SignatureError(f"cannot read the key {os.fspath(path)}: {error.strerror or 'unreadable'}") from None
    except NotSecretTextError as error:
        raise SignatureError(f"{os.fspath(path)} is no PEM file: {error}") from None


def read_public_key(path: str | os.PathLike[str], *, max_bytes: int = MAX_SECRET_FILE_BYTES) -> PublicKeyTypes:
    """Returns the public key in a PEM file, of whatever kind.

    Raises:
        SignatureError: If the file cannot be read or holds none.
    """
    text = read_pem(path, max_bytes=max_bytes)
    if "PRIVATE KEY" in text:
        raise SignatureError(f"{os.fspath(path)} is a private key: keep it to yourself and give the public one")
    try:
        pem = repair_pem(text, "PUBLIC KEY").encode("utf-8")
    except ChangedTextError as error:
        raise SignatureError(f"the public key in {os.fspath(path)} cannot be read: {error}") from None
    try:
        with damage_is_a_value_error():
            return serialization.load_pem_public_key(pem)
    except ValueError:
        raise SignatureError(f"{os.fspath(path)} is no PEM file with a public key") from None


def pem_of(public: PublicKeyTypes) -> bytes:
    """Returns a public key as PEM (SubjectPublicKeyInfo), with a newline at its end."""
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def write_public_key(path: str | os.PathLike[str], public: PublicKeyTypes) -> None:
    """Writes a public key as a PEM file, over one that is there.

    Raises:
        SignatureError: If the file cannot be written.
    """
    try:
        write_file(path, pem_of(public), mode=PUBLIC)
    except OSError as error:
        raise SignatureError(f"cannot write the public key {os.fspath(path)}: {error.strerror}") from None


def write_private_key(
    path: str | os.PathLike[str],
    private: PrivateKeyTypes,
    *,
    what: str = "signing key",
    error_class: type[KeylockError] = SignatureError,
) -> None:
    """Writes a private key, unencrypted, to a new PEM file that only its owner can read.

    Args:
        path: The file.
        private: The key.
        what: What an error calls it.
        error_class: What is raised.

    Raises:
        KeylockError: Of that class, if the file exists already, which is never overwritten, or cannot be created.
    """
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        write_secret_file(path, pem)
    except FileExistsError:
        raise error_class(f"{os.fspath(path)} exists and is not overwritten: choose another path") from None
    except OSError as error:
        raise error_class(f"cannot write the {what} {os.fspath(path)}: {error.strerror}") from None
