"""What licenses and access tokens share: a signed text of one kind, and the exact reason where it is not good.

The text is a compact JWS as `keylock.crypto.jws` reads and writes it: in one spelling and with one header, so that
`none`, HMAC under the public key, `crit`, embedded keys and second spellings are refused before any of it is
interpreted, and a token of one kind never passes for one of another. Here are added the longest token that any server
accepts, the keys that are trusted, and the reasons.
"""

from collections.abc import Collection
from typing import Final, NoReturn

from keylock.crypto import jws
from keylock.crypto.signing import SigningKey, VerifyingKey, canonical_json
from keylock.errors import LicenseError, LicenseReason, SignatureError

__all__ = ["MAX_TOKEN_BYTES", "kind_of", "open_signed", "refuse", "refuse_malformed", "sign", "take_apart"]

MAX_TOKEN_BYTES: Final = 8 * 1024


def sign(claims: object, *, kind: str, signing_key: SigningKey) -> str:
    """Returns a signed text.

    Args:
        claims: What it says; plain JSON values.
        kind: Its `typ`.
        signing_key: The key to sign with, named in its `kid`.

    Raises:
        LicenseError: If it would be longer than any server accepts.
    """
    token = jws.sign(canonical_json(claims), signing_key, typ=kind)
    if len(token) > MAX_TOKEN_BYTES:
        raise LicenseError(LicenseReason.MALFORMED, "the license is too long: name fewer models or explainers")
    return token


def kind_of(token: str) -> str:
    """Returns the `typ` a token states, before anything about it was verified; empty where it states none."""
    kind = jws.unverified_header(token[: MAX_TOKEN_BYTES + 1]).get("typ")
    return kind if isinstance(kind, str) else ""


def open_signed(token: str, keys: Collection[VerifyingKey], *, kind: str) -> tuple[bytes, str]:
    """Verifies a signed text.

    1. It has the size and the spelling of a token, and the header that `sign` writes for this kind.
    2. It was signed by one of the keys.
    3. The signature fits.

    Args:
        token: What was presented.
        keys: The keys that are trusted.
        kind: The `typ` it must have.

    Returns:
        Its payload, and the id of the key.

    Raises:
        LicenseError: If it is not good, with the exact reason.
    """
    parsed = _parse(token, kind)
    key = next((key for key in keys if key.key_id == parsed.key_id), None)
    if key is None:
        refuse(
            LicenseReason.UNKNOWN_ISSUER,
            "the license was issued by somebody who is not trusted here: use the license for this service",
        )
    try:
        return parsed.verify(key), key.key_id
    except SignatureError:
        refuse(LicenseReason.FORGED, "the license was changed, or was not signed by its issuer: ask the vendor")


def take_apart(token: str, *, kind: str) -> tuple[bytes, str]:
    """Returns the payload of a signed text and the id of the key it names, after step 1 of `open_signed` alone.

    Args:
        token: What was presented.
        kind: The `typ` it must have.

    Raises:
        LicenseError: If it is no such text.
    """
    parsed = _parse(token, kind)
    return parsed.payload, parsed.key_id


def _parse(token: str, kind: str) -> jws.Jws:
    if len(token) > MAX_TOKEN_BYTES:
        refuse(LicenseReason.MALFORMED, f"the license has more than {MAX_TOKEN_BYTES} characters: copy it again")
    try:
        return jws.Jws.parse(token, typ=kind, max_bytes=MAX_TOKEN_BYTES)
    except ValueError:
        # What states another algorithm was made by somebody; all else may be a slip of whoever copied it.
        if jws.unverified_header(token).get("alg", jws.ALGORITHM) != jws.ALGORITHM:
            refuse(LicenseReason.FORGED, "the license is not signed the way a keylock issuer signs: ask the vendor")
        refuse_malformed()


def refuse(reason: LicenseReason, message: str) -> NoReturn:
    """Raises the error without a cause: the cause may quote the token.

    Raises:
        LicenseError: Always.
    """
    raise LicenseError(reason, message) from None


def refuse_malformed() -> NoReturn:
    """Refuses what is not a token.

    Raises:
        LicenseError: Always, with the reason `MALFORMED`.
    """
    refuse(LicenseReason.MALFORMED, "this is not a keylock license, or not all of one: copy the whole token again")
