"""ECDSA keys for signatures in formats of others, which know no Ed25519: P-256, P-384 and P-521.

keylock makes keys on P-256; the two larger curves are taken where a vendor has such a key already. The hash goes with
the curve: SHA-256, SHA-384, SHA-512.
"""

import hashlib
import os
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keylock.crypto.key_parsing import damage_is_a_value_error
from keylock.crypto.pem_files import pem_of, read_pem, read_public_key, write_private_key, write_public_key
from keylock.crypto.secrecy import Opaque
from keylock.errors import SignatureError

__all__ = ["EcdsaSigningKey", "EcdsaVerifyingKey"]

_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
_CURVES: Final = "an elliptic-curve key on P-256, P-384 or P-521 is needed"


class EcdsaVerifyingKey:
    """The public half of a signing key.

    Attributes:
        hint: What signatures name it by: SHA-256 of its PEM as `to_pem` gives it, in hexadecimal.
    """

    __slots__ = ("_public", "hint")

    hint: str

    def __init__(self, public: ec.EllipticCurvePublicKey) -> None:
        """Takes a public key on one of the three curves; `load` reads one."""
        self._public = public
        self.hint = hashlib.sha256(self.to_pem()).hexdigest()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "EcdsaVerifyingKey":
        """Returns the key in a PEM file.

        Raises:
            SignatureError: If the file cannot be read or holds no public key on one of the three curves.
        """
        key = read_public_key(path)
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
            raise SignatureError(f"{os.fspath(path)} holds a public key of another kind: {_CURVES}")
        return cls(key)

    def to_pem(self) -> bytes:
        """Returns the key as PEM (SubjectPublicKeyInfo), with a newline at its end."""
        return pem_of(self._public)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the key as a PEM file, over one that is there.

        Raises:
            SignatureError: If the file cannot be written.
        """
        write_public_key(path, self._public)

    def verify(self, signature: bytes, data: bytes) -> None:
        """Returns when the signature (DER) was made over the data with this key's private half.

        Raises:
            SignatureError: If it was not.
        """
        try:
            self._public.verify(signature, data, ec.ECDSA(_HASHES[self._public.curve.name]))
        except InvalidSignature:
            raise SignatureError("the signature was not made by this key over this content") from None

    def __repr__(self) -> str:
        return f"EcdsaVerifyingKey(hint={self.hint[:16]!r})"


class EcdsaSigningKey(Opaque):
    """A private key. It shows the hint of its public half, and is neither copied nor pickled.

    Attributes:
        verifying_key: The public half.
    """

    __slots__ = ("_private", "verifying_key")

    verifying_key: EcdsaVerifyingKey

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        """Takes a private key on one of the three curves; `generate` and `load` make one."""
        self._private = private
        self.verifying_key = EcdsaVerifyingKey(private.public_key())

    @classmethod
    def generate(cls) -> "EcdsaSigningKey":
        """Returns a new key on P-256."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "EcdsaSigningKey":
        """Returns the key in a PEM file, which is not encrypted.

        Raises:
            SignatureError: If the file cannot be read or holds no private key on one of the three curves.
        """
        text = read_pem(path)
        if "ENCRYPTED" in text:
            raise SignatureError(
                f"the signing key {os.fspath(path)} is encrypted with a passphrase, which is not asked for here: "
                "give a key without one, in a file that only you can read"
            )
        try:
            with damage_is_a_value_error():
                key = serialization.load_pem_private_key(text.encode("utf-8"), password=None)
        except ValueError:
            raise SignatureError(f"{os.fspath(path)} is no PEM file with a private key") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
            raise SignatureError(f"{os.fspath(path)} holds a private key of another kind: {_CURVES}")
        return cls(key)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the key, unencrypted, to a new PEM file that only its owner can read.

        Raises:
            SignatureError: If the file exists already, which is never overwritten, or cannot be created.
        """
        write_private_key(path, self._private)

    def sign(self, data: bytes) -> bytes:
        """Returns the signature of the data, in DER."""
        return self._private.sign(data, ec.ECDSA(_HASHES[self._private.curve.name]))

    def __repr__(self) -> str:
        return f"EcdsaSigningKey(hint={self.verifying_key.hint[:16]!r})"
