"""License tokens: a license as a compact JWS (RFC 7515), signed with Ed25519 and nothing else.

A token is accepted in one spelling and with one header: `alg` Ed25519 (RFC 9864), `typ` keylock-license+jws and `kid`,
no more and no less. So `none`, HMAC under the public key, `crit`, embedded keys and second spellings are refused before
any of it is interpreted.
"""

import json
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, NoReturn

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from keylock.errors import LicenseError, LicenseReason
from keylock.licensing.claims import License
from keylock.signing import SigningKey, VerifyingKey, canonical_json, decode_base64url

__all__ = ["MAX_TOKEN_BYTES", "TOKEN_TYPE", "issue", "verify", "verify_ignoring_time"]

MAX_TOKEN_BYTES: Final = 8 * 1024
TOKEN_TYPE: Final = "keylock-license+jws"  # noqa: S105 - a media type, not a secret

_ALGORITHM: Final = "Ed25519"
_MAX_HEADER_BYTES: Final = 256
_SIGNATURE_BYTES: Final = 64
_LAST_SECOND: Final = 253_402_300_799  # 9999-12-31T23:59:59Z, the last one Python can represent.

_Seconds = Annotated[int, Field(ge=0, le=_LAST_SECOND)]


class _Claims(BaseModel):
    """The payload. Registered claims are those of RFC 7519, section 4.1."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    iss: str
    jti: str
    sub: str
    iat: _Seconds
    nbf: _Seconds
    exp: _Seconds
    models: list[str]
    explainers: list[str]
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
        features=license.features,
    )
    payload = canonical_json(claims.model_dump())
    header = {"alg": _ALGORITHM, "typ": TOKEN_TYPE, "kid": signing_key.key_id}
    token = jws.serialize_compact(header, payload, OKPKey.import_key(signing_key.reveal()), algorithms=[_ALGORITHM])
    if len(token) > MAX_TOKEN_BYTES:
        raise LicenseError(LicenseReason.MALFORMED, "the license is too long: name fewer models or explainers")
    return token


def verify(token: str, keys: Collection[VerifyingKey], *, now: datetime, leeway_s: float = 30) -> License:
    """Returns the license in a token after verifying all of it but revocation and what it covers.

    1. It has the size and the spelling of a token.
    2. Its header is the one keylock writes.
    3. It was issued by one of the keys.
    4. The signature fits.
    5. The payload is a license that names the same issuer.
    6. It holds now.

    Args:
        token: What was presented.
        keys: The issuers that are trusted.
        now: The time, with its zone.
        leeway_s: By how many seconds clocks may differ.

    Raises:
        LicenseError: If it is not good, with the exact reason.
    """
    license = verify_ignoring_time(token, keys)
    _check_time(license, now=now, leeway=timedelta(seconds=leeway_s))
    return license


def verify_ignoring_time(token: str, keys: Collection[VerifyingKey]) -> License:
    """Returns the license in a token after steps 1 to 5 of `verify`: to show it, never to grant anything.

    Args:
        token: What was presented.
        keys: The issuers that are trusted.

    Raises:
        LicenseError: If it is not good, with the exact reason.
    """
    header_text, payload_text, signature_text = _split(token)
    key_id = _read_header(header_text)
    key = next((key for key in keys if key.key_id == key_id), None)
    if key is None:
        _refuse(
            LicenseReason.UNKNOWN_ISSUER,
            "the license was issued by somebody this server does not trust: use the license for this service",
        )
    if len(_decode(signature_text)) != _SIGNATURE_BYTES:
        _refuse_malformed()
    _decode(payload_text)
    payload = _verify_signature(token, key)
    return _read_payload(payload, key_id)


def _split(token: str) -> tuple[str, str, str]:
    if len(token) > MAX_TOKEN_BYTES:
        _refuse(LicenseReason.MALFORMED, f"the license has more than {MAX_TOKEN_BYTES} characters: copy it again")
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        _refuse_malformed()
    return parts[0], parts[1], parts[2]


def _read_header(text: str) -> str:
    """Returns the `kid` of a header that has the three members and nothing else."""
    raw = _decode(text)
    if len(raw) > _MAX_HEADER_BYTES:
        _refuse_malformed()
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        _refuse_malformed()
    if not isinstance(header, dict):
        _refuse_malformed()
    if header.get("alg") != _ALGORITHM:
        _refuse(LicenseReason.FORGED, "the license is not signed the way a keylock issuer signs: ask the vendor")
    key_id = header.get("kid")
    if set(header) != {"alg", "typ", "kid"} or header["typ"] != TOKEN_TYPE or not isinstance(key_id, str):
        _refuse_malformed()
    return key_id


def _verify_signature(token: str, key: VerifyingKey) -> bytes:
    try:
        return jws.deserialize_compact(token, OKPKey.import_key(dict(key.to_jwk())), algorithms=[_ALGORITHM]).payload
    except JoseError:
        _refuse(LicenseReason.FORGED, "the license was changed, or was not signed by its issuer: ask the vendor")


def _read_payload(payload: bytes, key_id: str) -> License:
    """Returns the license in a payload whose signature is good."""
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
            features=claims.features,
        )
    except ValidationError:
        _refuse(
            LicenseReason.MALFORMED, "the license says something this keylock does not know: upgrade, or ask the vendor"
        )
    if claims.iss != key_id:
        _refuse(LicenseReason.FORGED, "the license names another issuer than the one that signed it: ask the vendor")
    return license


def _check_time(license: License, *, now: datetime, leeway: timedelta) -> None:
    if now + leeway < license.not_before:
        _refuse(
            LicenseReason.NOT_YET_VALID,
            f"the license {license.id} holds from {_show(license.not_before)} and it is {_show(now)} here: "
            "wait, or check the clocks",
        )
    if now - leeway >= license.expires:
        _refuse(
            LicenseReason.EXPIRED,
            f"the license {license.id} expired at {_show(license.expires)} and it is {_show(now)} here: "
            "ask the vendor for a new one",
        )


def _show(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _decode(text: str) -> bytes:
    try:
        return decode_base64url(text)
    except ValueError:
        _refuse_malformed()


def _refuse_malformed() -> NoReturn:
    _refuse(LicenseReason.MALFORMED, "this is no keylock license, or not all of one: copy the whole token again")


def _refuse(reason: LicenseReason, message: str) -> NoReturn:
    # The cause is dropped on purpose: it may quote the token.
    raise LicenseError(reason, message) from None
