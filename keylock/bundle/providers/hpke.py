"""HPKE (RFC 9180): sealed to a server's public key, so that whoever carries the file cannot read it.

Base mode with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM; the context is HPKE's `info`. Base mode does not
say who sealed: a seed that is not the one named by the signed manifest is refused after it was opened.
"""

import os
from contextlib import suppress
from typing import ClassVar, Final, Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from keylock.bundle.providers.base import Entry, Provider, decode, new_data_key, read_text
from keylock.crypto.key_parsing import damage_is_a_value_error
from keylock.crypto.pem_files import pem_of, write_private_key
from keylock.crypto.signing import encode_base64url, thumbprint_id
from keylock.errors import UnsealError
from keylock.text.small_files import repair_pem

__all__ = ["HpkeEntry", "HpkeIdentity", "HpkeRecipient", "read_hpke"]

SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class HpkeEntry(Entry):
    """To whom a data key was sealed."""

    kind: ClassVar[str] = "the public key of a recipient"
    give: ClassVar[str] = "its private key as a key provider, hpke:FILE"

    name: Literal["hpke/x25519-hkdf-sha256/aes-256-gcm"] = "hpke/x25519-hkdf-sha256/aes-256-gcm"
    recipient: str
    wrapped: str


class HpkeRecipient(Provider[HpkeEntry]):
    """A recipient's public key: it seals and opens nothing.

    Attributes:
        key_id: Names the key; the private half has the same.
    """

    __slots__ = ("_public", "key_id")

    entry = HpkeEntry

    key_id: str

    def __init__(self, public: X25519PublicKey) -> None:
        """Takes the key."""
        self._public = public
        jwk = {"crv": "X25519", "kty": "OKP", "x": encode_base64url(public.public_bytes_raw())}
        self.key_id = thumbprint_id(jwk)

    @property
    def name(self) -> str:
        """Names it in errors."""
        return f"the recipient's key {self.key_id}"

    def wrap(self, context: bytes) -> tuple[HpkeEntry, bytearray]:
        """Seals a new data key."""
        key = new_data_key()
        wrapped = SUITE.encrypt(key, self._public, info=context)
        return HpkeEntry(recipient=self.key_id, wrapped=encode_base64url(wrapped)), key

    def unwrap(self, entry: HpkeEntry, context: bytes) -> bytearray:
        """Refuses: a public key opens nothing.

        Raises:
            UnsealError: Always.
        """
        raise UnsealError(f"{self.name} is public and opens nothing: give {HpkeEntry.give}")

    def to_pem(self) -> bytes:
        """Returns the key as PEM (SubjectPublicKeyInfo)."""
        return pem_of(self._public)

    def __repr__(self) -> str:
        return f"HpkeRecipient(key_id={self.key_id!r})"


class HpkeIdentity(Provider[HpkeEntry]):
    """A recipient's private key: it opens what was sealed to its public half, and seals to itself.

    Attributes:
        recipient: The public half.
    """

    __slots__ = ("_private", "recipient")

    entry = HpkeEntry

    recipient: HpkeRecipient

    def __init__(self, private: X25519PrivateKey) -> None:
        """Takes the key."""
        self._private: X25519PrivateKey | None = private
        self.recipient = HpkeRecipient(private.public_key())

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> "HpkeIdentity":
        """Writes a new private key, unencrypted, to a new PEM file that only its owner can read.

        Raises:
            UnsealError: If the file exists already, which is never overwritten, or cannot be created.
        """
        private = X25519PrivateKey.generate()
        write_private_key(path, private, what="recipient's key", error_class=UnsealError)
        return cls(private)

    @property
    def name(self) -> str:
        """Names it in errors."""
        return self.recipient.name

    def wrap(self, context: bytes) -> tuple[HpkeEntry, bytearray]:
        """Seals a new data key to itself."""
        return self.recipient.wrap(context)

    def unwrap(self, entry: HpkeEntry, context: bytes) -> bytearray:
        """Opens a data key that was sealed to this key."""
        if self._private is None:
            raise UnsealError(f"{self.name} was closed")
        if entry.recipient != self.recipient.key_id:
            raise UnsealError(
                f"the key was sealed to the recipient {entry.recipient}, and this is {self.recipient.key_id}: "
                "have it sealed to this one, or give the other"
            )
        return bytearray(SUITE.decrypt(decode(entry.wrapped), self._private, info=context))

    def close(self) -> None:
        """Lets the private key go; OpenSSL wipes it when nothing refers to it any more."""
        self._private = None

    def __repr__(self) -> str:
        return f"HpkeIdentity(key_id={self.recipient.key_id!r})"


def read_hpke(path: str | os.PathLike[str]) -> HpkeIdentity | HpkeRecipient:
    """Returns the private or public key in a PEM file.

    Raises:
        UnsealError: If the file cannot be read or holds no X25519 key without a passphrase.
    """
    pem = read_text(path, "recipient's key").encode("utf-8")
    with suppress(ValueError), damage_is_a_value_error():
        if b"PRIVATE KEY" in pem:
            private = serialization.load_pem_private_key(pem, password=None)
            if isinstance(private, X25519PrivateKey):
                return HpkeIdentity(private)
        else:
            public = serialization.load_pem_public_key(repair_pem(pem.decode("utf-8"), "PUBLIC KEY").encode("utf-8"))
            if isinstance(public, X25519PublicKey):
                return HpkeRecipient(public)
    raise UnsealError(
        f"{os.fspath(path)} is no X25519 key in PEM without a passphrase: keylock key new-recipient makes one"
    )
