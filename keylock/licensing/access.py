"""Access tokens: what a license is exchanged for, so that the license itself travels rarely.

A server signs them with a key of its own. They hold for minutes, name the license and say all that it says, and may be
bound to the TLS certificate of the client, so that a stolen one is of no use (RFC 8705, section 3.1).
"""

import hashlib
import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from keylock.crypto.signing import SigningKey, VerifyingKey, encode_base64url
from keylock.errors import LicenseReason
from keylock.licensing.claims import License
from keylock.licensing.compact import open_signed, refuse, sign
from keylock.licensing.tokens import Seconds, check_time

__all__ = [
    "ACCESS_TYPE",
    "MAX_LIFETIME_S",
    "MIN_LIFETIME_S",
    "AccessToken",
    "certificate_thumbprint",
    "issue_access",
    "verify_access",
]

ACCESS_TYPE: Final = "keylock-access+jws"
MIN_LIFETIME_S: Final = 300
MAX_LIFETIME_S: Final = 900


class _Confirmation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    x5t_s256: str = Field(alias="x5t#S256", pattern=r"\A[A-Za-z0-9_-]{43}\z")


class _Claims(BaseModel):
    """The payload: registered claims of RFC 7519, section 4.1, and `cnf` of RFC 8705, section 3.1."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    iss: str
    jti: str
    sub: str
    iat: Seconds
    exp: Seconds
    cnf: _Confirmation | None = None
    license: License


@dataclass(frozen=True, slots=True)
class AccessToken:
    """An access token that was issued or verified.

    Attributes:
        id: Names it, `tok_` and 20 hexadecimal digits.
        license: What it stands for.
        issued_at: When it was issued.
        expires: From when it holds no more.
    """

    id: str
    license: License
    issued_at: datetime
    expires: datetime


def certificate_thumbprint(der: bytes) -> str:
    """Returns the SHA-256 thumbprint of a certificate, in base64url.

    Args:
        der: The certificate, in DER.

    References:
        RFC 8705, section 3.1 (`x5t#S256`).
    """
    return encode_base64url(hashlib.sha256(der).digest())


def issue_access(
    license: License,
    signing_key: SigningKey,
    *,
    now: datetime,
    lifetime_s: int,
    ends: datetime | None = None,
    thumbprint: str | None = None,
) -> tuple[str, AccessToken]:
    """Makes an access token.

    Args:
        license: The license it stands for, verified.
        signing_key: The server's key for access tokens.
        now: The time, with its zone.
        lifetime_s: For how many seconds it holds; the license's own end may come sooner.
        ends: The end of the license as the store has it, which may come sooner still; None where there is no store.
        thumbprint: Of the certificate it is bound to; None for a token that is not bound.

    Returns:
        The text to present, and what it says.
    """
    issued_at = now.astimezone(UTC).replace(microsecond=0)
    expires = min(issued_at + timedelta(seconds=lifetime_s), license.expires, ends or license.expires)
    token = AccessToken(id="tok_" + secrets.token_hex(10), license=license, issued_at=issued_at, expires=expires)
    claims: dict[str, object] = {
        "iss": signing_key.key_id,
        "jti": token.id,
        "sub": license.id,
        "iat": int(issued_at.timestamp()),
        "exp": int(token.expires.timestamp()),
        "license": license.model_dump(mode="json", exclude_defaults=True),
    }
    if thumbprint is not None:
        claims["cnf"] = {"x5t#S256": thumbprint}
    return sign(claims, kind=ACCESS_TYPE, signing_key=signing_key), token


def verify_access(
    token: str, keys: Collection[VerifyingKey], *, now: datetime, leeway_s: float = 30, thumbprint: str | None = None
) -> AccessToken:
    """Returns what an access token says after verifying all of it but revocation and what it covers.

    1. It is a signed text of this kind by one of the keys (`compact.open_signed`).
    2. The payload is an access token that names the same issuer and the license in it.
    3. It holds now.
    4. It is bound to no certificate, or to the one the client has shown.

    Args:
        token: What was presented.
        keys: The keys of the servers that are trusted to exchange licenses.
        now: The time, with its zone.
        leeway_s: By how many seconds clocks may differ.
        thumbprint: Of the certificate the client has shown; None where it has shown none.

    Raises:
        LicenseError: If it is not good, with the exact reason.
    """
    payload, key_id = open_signed(token, keys, kind=ACCESS_TYPE)
    try:
        claims = _Claims.model_validate_json(payload)
    except ValidationError:
        refuse(LicenseReason.MALFORMED, "the access token says something this keylock does not know: get a new one")
    if claims.iss != key_id or claims.sub != claims.license.id:
        refuse(LicenseReason.FORGED, "the access token contradicts itself: get a new one")
    expires = datetime.fromtimestamp(claims.exp, UTC)
    check_time(claims.sub, claims.license.not_before, expires, now=now, leeway_s=leeway_s)
    if claims.cnf is not None and not hmac.compare_digest(claims.cnf.x5t_s256, thumbprint or ""):
        refuse(
            LicenseReason.WRONG_CERTIFICATE,
            "the access token is bound to another TLS certificate: present that certificate, or get a new token",
        )
    issued_at = datetime.fromtimestamp(claims.iat, UTC)
    return AccessToken(id=claims.jti, license=claims.license, issued_at=issued_at, expires=expires)
