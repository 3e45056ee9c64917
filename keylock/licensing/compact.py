"""Signed texts: compact JWS (RFC 7515) with Ed25519 and nothing else, for licenses and access tokens.

A token is accepted in one spelling and with one header: `alg` Ed25519 (RFC 9864), the `typ` of its kind and `kid`, no
more and no less. So `none`, HMAC under the public key, `crit`, embedded keys and second spellings are refused before
any of it is interpreted, and a token of one kind never passes for one of another.
"""

import json
from collections.abc import Collection
from typing import Final, NoReturn

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from keylock.errors import LicenseError, LicenseReason
from keylock.signing import SigningKey, VerifyingKey, canonical_json, decode_base64url

__all__ = ["MAX_TOKEN_BYTES", "kind_of", "open_signed", "refuse", "refuse_malformed", "sign"]

MAX_TOKEN_BYTES: Final = 8 * 1024

_ALGORITHM: Final = "Ed25519"
_MAX_HEADER_BYTES: Final = 256
_SIGNATURE_BYTES: Final = 64


def sign(claims: object, *, kind: str, signing_key: SigningKey) -> str:
    """Returns a signed text.

    Args:
        claims: What it says; plain JSON values.
        kind: Its `typ`.
        signing_key: The key to sign with, named in its `kid`.

    Raises:
        LicenseError: If it would be longer than any server accepts.
    """
    header = {"alg": _ALGORITHM, "typ": kind, "kid": signing_key.key_id}
    key = OKPKey.import_key(signing_key.reveal())
    token = jws.serialize_compact(header, canonical_json(claims), key, algorithms=[_ALGORITHM])
    if len(token) > MAX_TOKEN_BYTES:
        raise LicenseError(LicenseReason.MALFORMED, "the license is too long: name fewer models or explainers")
    return token


def kind_of(token: str) -> str:
    """Returns the `typ` a token states, before anything about it was verified; empty where it states none."""
    try:
        header = json.loads(decode_base64url(token[: MAX_TOKEN_BYTES + 1].partition(".")[0]))
    except (ValueError, RecursionError):
        return ""
    kind = header.get("typ") if isinstance(header, dict) else None
    return kind if isinstance(kind, str) else ""


def open_signed(token: str, keys: Collection[VerifyingKey], *, kind: str) -> tuple[bytes, str]:
    """Verifies a signed text.

    1. It has the size and the spelling of a token.
    2. Its header is the one `sign` writes for this kind.
    3. It was signed by one of the keys.
    4. The signature fits.

    Args:
        token: What was presented.
        keys: The keys that are trusted.
        kind: The `typ` it must have.

    Returns:
        Its payload, and the id of the key.

    Raises:
        LicenseError: If it is not good, with the exact reason.
    """
    header_text, payload_text, signature_text = _split(token)
    key_id = _read_header(header_text, kind)
    key = next((key for key in keys if key.key_id == key_id), None)
    if key is None:
        refuse(
            LicenseReason.UNKNOWN_ISSUER,
            "the license was issued by somebody this server does not trust: use the license for this service",
        )
    if len(_decode(signature_text)) != _SIGNATURE_BYTES:
        refuse_malformed()
    _decode(payload_text)
    return _verify_signature(token, key), key_id


def refuse(reason: LicenseReason, message: str) -> NoReturn:
    """Raises the error without a cause: the cause may quote the token.

    Raises:
        LicenseError: Always.
    """
    raise LicenseError(reason, message) from None


def refuse_malformed() -> NoReturn:
    """Refuses what is no token.

    Raises:
        LicenseError: Always, with the reason `MALFORMED`.
    """
    refuse(LicenseReason.MALFORMED, "this is no keylock license, or not all of one: copy the whole token again")


def _split(token: str) -> tuple[str, str, str]:
    if len(token) > MAX_TOKEN_BYTES:
        refuse(LicenseReason.MALFORMED, f"the license has more than {MAX_TOKEN_BYTES} characters: copy it again")
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        refuse_malformed()
    return parts[0], parts[1], parts[2]


def _read_header(text: str, kind: str) -> str:
    """Returns the `kid` of a header that has the three members and nothing else."""
    raw = _decode(text)
    if len(raw) > _MAX_HEADER_BYTES:
        refuse_malformed()
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        refuse_malformed()
    if not isinstance(header, dict):
        refuse_malformed()
    if header.get("alg") != _ALGORITHM:
        refuse(LicenseReason.FORGED, "the license is not signed the way a keylock issuer signs: ask the vendor")
    key_id = header.get("kid")
    if set(header) != {"alg", "typ", "kid"} or header["typ"] != kind or not isinstance(key_id, str):
        refuse_malformed()
    return key_id


def _verify_signature(token: str, key: VerifyingKey) -> bytes:
    try:
        return jws.deserialize_compact(token, OKPKey.import_key(dict(key.to_jwk())), algorithms=[_ALGORITHM]).payload
    except JoseError:
        refuse(LicenseReason.FORGED, "the license was changed, or was not signed by its issuer: ask the vendor")


def _decode(text: str) -> bytes:
    try:
        return decode_base64url(text)
    except ValueError:
        refuse_malformed()
