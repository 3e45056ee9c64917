"""License tokens: a license as a signed text, which whoever has it can use."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from keylock.crypto.signing import SigningKey, VerifyingKey
from keylock.errors import LicenseReason
from keylock.licensing.claims import DisclosureTerms, License, Quota, Rate
from keylock.licensing.compact import MAX_TOKEN_BYTES, open_signed, refuse, sign, take_apart

__all__ = [
    "MAX_TOKEN_BYTES",
    "TOKEN_TYPE",
    "Seconds",
    "check_time",
    "issue",
    "read_unverified",
    "verify",
    "verify_ignoring_time",
]

TOKEN_TYPE: Final = "keylock-license+jws"  # noqa: S105 - a media type, not a secret

_LAST_SECOND: Final = 253_402_300_799  # 9999-12-31T23:59:59Z, the last one Python can represent.

Seconds = Annotated[int, Field(ge=0, le=_LAST_SECOND)]


class _Claims(BaseModel):
    """The payload. Registered claims are those of RFC 7519, section 4.1; what a license does not limit is left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    iss: str
    jti: str
    sub: str
    iat: Seconds
    nbf: Seconds
    exp: Seconds
    models: list[str]
    explainers: list[str]
    quota: Quota | None = None
    rate: Rate | None = None
    max_images: int | None = None
    max_pixels: int | None = None
    similar_queries: bool | None = None
    disclosure: DisclosureTerms | None = None
    features: dict[str, JsonValue] = {}


def issue(license: License, signing_key: SigningKey) -> str:
    """Returns the token that a customer presents; whoever has it has the grant.

    Raises:
        LicenseError: If it would be longer than any server accepts.
    """
    claims = _Claims(
        iss=signing_key.key_id,
        jti=license.id,
        sub=license.customer,
        iat=int(license.issued_at.timestamp()),
        nbf=int(license.not_before.timestamp()),
        exp=int(license.expires.timestamp()),
        models=list(license.models),
        explainers=list(license.explainers),
        quota=None if license.quota == Quota() else license.quota,
        rate=license.rate,
        max_images=license.max_images,
        max_pixels=license.max_pixels,
        similar_queries=license.similar_queries or None,
        disclosure=license.disclosure,
        features=license.features,
    )
    return sign(claims.model_dump(exclude_none=True), kind=TOKEN_TYPE, signing_key=signing_key)


def verify(token: str, keys: Collection[VerifyingKey], *, now: datetime, leeway_s: float = 30) -> License:
    """Returns the license in a token after verifying all of it but revocation and what it covers.

    1. It is a signed text of this kind by one of the keys (`compact.open_signed`).
    2. The payload is a license that names the same issuer.
    3. It holds now.

    Args:
        token: What was presented.
        keys: The issuers that are trusted.
        now: The time, with its zone.
        leeway_s: By how many seconds clocks may differ.

    Raises:
        LicenseError: If it is not good, with the exact reason.
    """
    license = verify_ignoring_time(token, keys)
    check_time(license.id, license.not_before, license.expires, now=now, leeway_s=leeway_s)
    return license


def verify_ignoring_time(token: str, keys: Collection[VerifyingKey]) -> License:
    """Returns the license in a token after steps 1 and 2 of `verify`: to show it, never to grant anything.

    Args:
        token: What was presented.
        keys: The issuers that are trusted.

    Raises:
        LicenseError: If it is not good, with the exact reason.
    """
    return _read(*open_signed(token, keys, kind=TOKEN_TYPE))


def read_unverified(token: str) -> tuple[License, str]:
    """Returns what a token says, and the id of the key that is said to have signed it; nothing of it is verified.

    This is to show a license to its owner where the key of its issuer is not at hand, and for nothing else.

    Raises:
        LicenseError: If it is not a license.
    """
    payload, key_id = take_apart(token, kind=TOKEN_TYPE)
    return _read(payload, key_id), key_id


def _read(payload: bytes, key_id: str) -> License:
    try:
        claims = _Claims.model_validate_json(payload)
        license = License(
            id=claims.jti,
            customer=claims.sub,
            models=tuple(claims.models),
            explainers=tuple(claims.explainers),
            issued_at=datetime.fromtimestamp(claims.iat, UTC),
            not_before=datetime.fromtimestamp(claims.nbf, UTC),
            expires=datetime.fromtimestamp(claims.exp, UTC),
            quota=claims.quota or Quota(),
            rate=claims.rate,
            max_images=claims.max_images,
            max_pixels=claims.max_pixels,
            similar_queries=claims.similar_queries or False,
            disclosure=claims.disclosure,
            features=claims.features,
        )
    except ValidationError:
        refuse(
            LicenseReason.MALFORMED, "the license says something this keylock does not know: upgrade, or ask the vendor"
        )
    if claims.iss != key_id:
        refuse(LicenseReason.FORGED, "the license names another issuer than the one that signed it: ask the vendor")
    return license


def check_time(id: str, not_before: datetime, expires: datetime, *, now: datetime, leeway_s: float) -> None:
    """Returns when something that is signed holds now.

    Args:
        id: What to call it in the error.
        not_before: From when it holds.
        expires: From when it holds no more.
        now: The time, with its zone.
        leeway_s: By how many seconds clocks may differ.

    Raises:
        LicenseError: If it does not, with the reason `NOT_YET_VALID` or `EXPIRED`.
    """
    leeway = timedelta(seconds=leeway_s)
    if now + leeway < not_before:
        refuse(
            LicenseReason.NOT_YET_VALID,
            f"the license {id} holds from {_show(not_before)} and it is {_show(now)} here: wait, or check the clocks",
        )
    if now - leeway >= expires:
        refuse(
            LicenseReason.EXPIRED,
            f"the license {id} expired at {_show(expires)} and it is {_show(now)} here: ask the vendor for a new one",
        )


def _show(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
