"""Compact JWS (RFC 7515) with Ed25519 and nothing else, in exactly one spelling.

A token is accepted only as `sign` writes it: the header is canonical JSON with `alg` Ed25519 (RFC 9864), the expected
`typ` and exactly the further members that its kind has. So `none`, HMAC, `crit` and second spellings are refused before
anything is interpreted.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Self

from pydantic_core import from_json

from keylock.crypto.signing import SigningKey, VerifyingKey, canonical_json, decode_base64url, encode_base64url
from keylock.errors import SignatureError

__all__ = ["ALGORITHM", "Jws", "sign", "unverified_header"]

ALGORITHM: Final = "Ed25519"
_SIGNATURE_BYTES: Final = 64


def sign(payload: bytes, key: SigningKey, *, typ: str, **members: object) -> str:
    """Returns a token. Equal arguments give equal tokens, because Ed25519 draws no random numbers.

    Args:
        payload: What is signed.
        key: What signs; its id becomes `kid`.
        typ: The kind of token.
        **members: Further members of the header.
    """
    header = canonical_json({"alg": ALGORITHM, "kid": key.key_id, "typ": typ, **members})
    signed = f"{encode_base64url(header)}.{encode_base64url(payload)}"
    return f"{signed}.{encode_base64url(key.sign(signed.encode('ascii')))}"


def unverified_header(token: str) -> Mapping[str, object]:
    """Returns the members of the header that a token states, to choose how to verify it; none where it has no header.

    Args:
        token: What was presented.
    """
    try:
        header = from_json(decode_base64url(token.partition(".")[0]))
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}


@dataclass(frozen=True)
class Jws:
    """A token that was taken apart. Nothing in it is to be believed before `verify` has returned.

    Attributes:
        header: The members of its header.
        payload: What was signed.
    """

    header: Mapping[str, object]
    payload: bytes
    _signed: bytes
    _signature: bytes

    @classmethod
    def parse(cls, token: str, *, typ: str, members: Collection[str] = (), max_bytes: int) -> Self:
        """Takes a token apart.

        Args:
            token: What was presented.
            typ: The kind that is expected.
            members: Names of the further members its header must have, and no other.
            max_bytes: The longest token that is read.

        Raises:
            ValueError: If it is not a token of this kind, or not in its one spelling.
        """
        parts = token.split(".")
        if len(token) > max_bytes or len(parts) != 3 or not token.isascii():
            raise ValueError("not a token")
        raw, payload, signature = (decode_base64url(part) for part in parts)
        header = from_json(raw)
        if not isinstance(header, dict) or canonical_json(header) != raw or len(signature) != _SIGNATURE_BYTES:
            raise ValueError("not spelled as it was signed")
        expected = {"alg": ALGORITHM, "kid": header.get("kid"), "typ": typ}
        if {name: header.get(name) for name in expected} != expected or not isinstance(expected["kid"], str):
            raise ValueError("not a token of this kind")
        if set(header) != {*expected, *members}:
            raise ValueError("not the header of this kind")
        return cls(header, payload, f"{parts[0]}.{parts[1]}".encode("ascii"), signature)

    @property
    def key_id(self) -> str:
        """The id of the key that is said to have signed it."""
        return str(self.header["kid"])

    def verify(self, key: VerifyingKey) -> bytes:
        """Returns the payload when the key signed it.

        Raises:
            SignatureError: If it did not.
        """
        if self.key_id != key.key_id:
            raise SignatureError(f"the token names the key {self.key_id}, not {key.key_id}")
        key.verify(self._signature, self._signed)
        return self.payload
