"""Ed25519 keys that sign bundles and licenses, and the vendor's directory that keeps them.

A `SigningKey` is opaque like a key seed. A `VerifyingKey` is public: it checks signatures and raises where one does
not fit. Both are named by `key_id`, 16 characters of the RFC 7638 thumbprint (see `thumbprint_id`).
"""

import base64
import binascii
import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from keylock.crypto.key_parsing import damage_is_a_value_error
from keylock.crypto.pem_files import pem_of, read_pem, read_public_key, write_private_key, write_public_key
from keylock.crypto.secrecy import (
    Opaque,
)
from keylock.errors import SignatureError
from keylock.files.atomic import PRIVATE, make_folders

__all__ = [
    "Home",
    "SigningKey",
    "VerifyingKey",
    "canonical_json",
    "decode_base64url",
    "encode_base64url",
    "thumbprint_id",
]

_KEY_ID_CHARACTERS: Final = 16
_MAX_PUBLIC_FILE_BYTES: Final = 64 * 1024  # A public key may come in a mail.


class VerifyingKey:
    """The public half of a signing key.

    Attributes:
        key_id: Names the key; equal keys have equal ids.
    """

    __slots__ = ("_public", "key_id")

    key_id: str

    def __init__(self, public: Ed25519PublicKey) -> None:
        self._public = public
        self.key_id = thumbprint_id(self.to_jwk())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "VerifyingKey":
        """Returns the key in a PEM file, for example `issuer.pub.pem`.

        Raises:
            SignatureError: If the file cannot be read or holds no Ed25519 public key.
        """
        key = read_public_key(path, max_bytes=_MAX_PUBLIC_FILE_BYTES)
        if not isinstance(key, Ed25519PublicKey):
            raise SignatureError(f"{os.fspath(path)} holds a public key of another kind: an Ed25519 key is needed")
        return cls(key)

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, object]) -> "VerifyingKey":
        """Returns the key of a JWK dictionary (RFC 8037) that has exactly `kty`, `crv` and `x`.

        Raises:
            SignatureError: If it is not the public JWK of an Ed25519 key.
        """
        x = jwk.get("x")
        if set(jwk) != {"kty", "crv", "x"} or (jwk["kty"], jwk["crv"]) != ("OKP", "Ed25519") or not isinstance(x, str):
            raise SignatureError("the public key must be a JWK with kty OKP, crv Ed25519 and x alone")
        try:
            return cls(Ed25519PublicKey.from_public_bytes(decode_base64url(x)))
        except ValueError:
            raise SignatureError("the public key's x is not 32 bytes in base64url") from None

    def to_jwk(self) -> dict[str, str]:
        """Returns the key as a JWK dictionary (RFC 8037)."""
        return {"crv": "Ed25519", "kty": "OKP", "x": encode_base64url(self._public.public_bytes_raw())}

    def to_pem(self) -> bytes:
        """Returns the key as PEM (SubjectPublicKeyInfo)."""
        return pem_of(self._public)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the key as a PEM file, over one that is there.

        Raises:
            SignatureError: If the file cannot be written.
        """
        write_public_key(path, self._public)

    def verify(self, signature: bytes, data: bytes) -> None:
        """Returns when the signature was made over the data with this key's private half.

        Raises:
            SignatureError: If it was not.
        """
        try:
            self._public.verify(signature, data)
        except InvalidSignature:
            raise SignatureError(f"the signature was not made by the key {self.key_id} over this content") from None

    def __repr__(self) -> str:
        return f"VerifyingKey(key_id={self.key_id!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VerifyingKey):
            return NotImplemented
        return self._public.public_bytes_raw() == other._public.public_bytes_raw()

    def __hash__(self) -> int:
        return hash((VerifyingKey, self._public.public_bytes_raw()))


class SigningKey(Opaque):
    """The private key with which a vendor signs.

    Attributes:
        verifying_key: The public half.
    """

    __slots__ = ("_private", "verifying_key")

    verifying_key: VerifyingKey

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.verifying_key = VerifyingKey(private.public_key())

    @classmethod
    def generate(cls) -> "SigningKey":
        """Returns a new random key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SigningKey":
        """Returns the key in a PKCS #8 PEM file.

        Raises:
            SignatureError: If the file cannot be read, is encrypted or holds no Ed25519 private key.
        """
        pem = read_pem(path).encode("utf-8")
        try:
            with damage_is_a_value_error():
                key = serialization.load_pem_private_key(pem, password=None)
        except ValueError:
            if b"ENCRYPTED" in pem:
                message = f"{os.fspath(path)} is encrypted: give a signing key without a passphrase"
                raise SignatureError(message) from None
            raise SignatureError(f"{os.fspath(path)} is no PEM file with a private key") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise SignatureError(f"{os.fspath(path)} holds a private key of another kind: an Ed25519 key is needed")
        return cls(key)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the key, unencrypted, to a new PEM file that only its owner can read.

        Raises:
            SignatureError: If the file exists already, which is never overwritten, or cannot be created.
        """
        write_private_key(path, self._private)

    @property
    def key_id(self) -> str:
        """Names the key; the same as that of its public half."""
        return self.verifying_key.key_id

    def sign(self, data: bytes) -> bytes:
        """Returns the signature of the data, 64 bytes."""
        return self._private.sign(data)

    def reveal(self) -> Ed25519PrivateKey:
        """Returns the private key, for a library that signs with it."""
        return self._private

    def __repr__(self) -> str:
        return f"SigningKey(key_id={self.key_id!r})"


class Home:
    """The vendor's directory: the issuer's keys and the licenses issued.

    Attributes:
        path: The directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, create: bool = True) -> "Home":
        """Returns the directory, made with a new issuer key where there is none and `create` is true.

        Raises:
            SignatureError: If there is no issuer key and none is to be made, or the directory cannot be made.
        """
        home = cls(Path(path).expanduser())
        if home.signing_key_path.exists():
            if not home.verifying_key_path.exists():
                home.signing_key().verifying_key.write(home.verifying_key_path)
            return home
        if not create:
            raise SignatureError(f"there is no issuer key in {home.path}: `keylock issuer init` makes one")
        try:
            make_folders(home.path, mode=PRIVATE)
        except OSError as error:
            raise SignatureError(f"cannot make the directory {home.path}: {error.strerror}") from None
        key = SigningKey.generate()
        key.write(home.signing_key_path)
        key.verifying_key.write(home.verifying_key_path)
        return home

    @property
    def signing_key_path(self) -> Path:
        """Where the issuer's private key is."""
        return self.path / "issuer.pem"

    @property
    def verifying_key_path(self) -> Path:
        """Where the issuer's public key is: the file to give to whoever checks bundles or licenses."""
        return self.path / "issuer.pub.pem"

    @property
    def oms_key_path(self) -> Path:
        """Where the P-256 key is that signs `model.sig` of bundles."""
        return self.path / "oms.pem"

    @property
    def oms_public_key_path(self) -> Path:
        """Where its public half is: the file to give to whoever verifies with other tools."""
        return self.path / "oms.pub.pem"

    @property
    def receipt_key_path(self) -> Path:
        """Where the key is that signs receipts and checkpoints."""
        return self.path / "receipts.pem"

    @property
    def revocations_path(self) -> Path:
        """Where the list of receipt keys is that were taken back."""
        return self.path / "receipt-revocations.jws"

    @property
    def licenses_path(self) -> Path:
        """Where the license store is."""
        return self.path / "licenses.db"

    @property
    def licenses_url(self) -> str:
        """The database URL of the license store."""
        return f"sqlite:///{self.licenses_path}"

    @property
    def engines_path(self) -> Path:
        """Where a server keeps what TensorRT built for graphs without secrets."""
        return self.path / "engines"

    @property
    def ways_path(self) -> Path:
        """Where a server remembers which runtime and numbers were the fastest for a graph."""
        return self.path / "ways.json"

    def signing_key(self) -> SigningKey:
        """Reads the issuer's private key.

        Raises:
            SignatureError: If it is missing or unreadable.
        """
        return SigningKey.load(self.signing_key_path)

    def verifying_key(self) -> VerifyingKey:
        """Reads the issuer's public key.

        Raises:
            SignatureError: If it is missing or unreadable.
        """
        return VerifyingKey.load(self.verifying_key_path)


def canonical_json(value: object) -> bytes:
    """Returns the one JSON text that is signed or digested: sorted names, no white space, UTF-8, finite numbers."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def thumbprint_id(jwk: Mapping[str, str]) -> str:
    """Returns what names a public key: 16 characters of its RFC 7638 thumbprint, from the first letter or digit on.

    An id that began with `-` would be taken for an option on a command line.

    Args:
        jwk: The required members of the public JWK, no others.
    """
    # RFC 7638, section 3.2: the required members alone, sorted, without white space.
    thumbprint = encode_base64url(hashlib.sha256(canonical_json(dict(jwk))).digest())
    return thumbprint.lstrip("-_")[:_KEY_ID_CHARACTERS]


def encode_base64url(data: bytes) -> str:
    """Returns base64url without padding (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode_base64url(text: str) -> bytes:
    """Returns the bytes of an unpadded base64url text, of which only the one canonical spelling is accepted.

    Raises:
        ValueError: If the text is anything else. Two spellings of one signature would let a changed byte pass.
    """
    with contextlib.suppress(binascii.Error, UnicodeEncodeError):
        data = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        if encode_base64url(data) == text:
            return data
    raise ValueError("not base64url")
