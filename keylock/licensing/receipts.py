"""Receipts: the vendor's signed word of what was charged, for what, and what was answered.

A receipt is a compact JWS over the canonical JSON of a charge. The same bytes, without the signature, are the entry of
the audit log, so that a receipt can be shown to be in it. What the answer said about the use of the license differs
from repeat to repeat and is no part of the entry: it stands in the header, under the same signature. Images, maps and
predictions are named by their digests; nothing in a receipt lets anybody see one of them, a key or a token. The format
is described in docs/receipts.md.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from keylock.crypto.jws import Jws, sign
from keylock.crypto.signing import VerifyingKey, canonical_json
from keylock.errors import AuditLogError, ReceiptError, SignatureError
from keylock.licensing.charges import AnswerDigests, Charge, UsageNote
from keylock.licensing.conditions import Condition
from keylock.licensing.disclosures import Disclosure
from keylock.licensing.receipt_keys import Certificate, ReceiptKey

__all__ = ["MAX_RECEIPT_BYTES", "Receipt", "ReceiptSigner", "entry_of", "parse_entry", "trusts_any", "trusts_id"]

# A request of 4,096 images has 20,480 digests.
MAX_RECEIPT_BYTES: Final = 3 * 1024 * 1024

_TYPE: Final = "keylock-receipt+jws"
_LAST_SECOND: Final = 253_402_300_799
_CHARGE: Final = "keylock-charge/v2"
_REPEAT: Final = "keylock-repeat/v2"
# Of requests with a condition, and of disclosures.
_FURTHER: Final = "keylock-charge/v3"
_FURTHER_REPEAT: Final = "keylock-repeat/v3"

_Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class _Claims(BaseModel):
    """The payload: what a `Charge` says, under names that never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["keylock-charge/v2"]
    license: str
    request: str
    request_digest: str
    model: str
    model_name: str
    explainer: str
    parameters: dict[str, JsonValue]
    target: int
    units: Annotated[int, Field(ge=0)]
    keyed: bool
    time: Annotated[int, Field(ge=0, le=_LAST_SECOND)]
    images: list[_Digest]
    maps: list[_Digest]
    scalings: list[_Digest | None]
    predictions: list[_Digest]
    targets: list[_Digest]


class _RepeatClaims(_Claims):
    """The payload of another answer to a request that was charged."""

    type: Literal["keylock-repeat/v2"]  # type: ignore[assignment]
    repeats: _Digest


class _FurtherClaims(_Claims):
    """The payload of a request of which those images were explained that met a condition, or of a disclosure."""

    type: Literal["keylock-charge/v3"]  # type: ignore[assignment]
    explain_if: dict[str, JsonValue] | None = None
    disclosure: dict[str, JsonValue] | None = None
    maps: list[_Digest | None]  # type: ignore[assignment]
    targets: list[_Digest | None]  # type: ignore[assignment]


class _FurtherRepeatClaims(_FurtherClaims):
    """The payload of another answer to such a request."""

    type: Literal["keylock-repeat/v3"]  # type: ignore[assignment]
    repeats: _Digest


_AnyClaims = _Claims | _RepeatClaims | _FurtherClaims | _FurtherRepeatClaims
_Entry: Final[TypeAdapter[_AnyClaims]] = TypeAdapter(Annotated[_AnyClaims, Field(discriminator="type")])


class _Usage(BaseModel):
    """The member `usage` of the header: what a `UsageNote` says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    replayed: bool
    overage_units: Annotated[int, Field(ge=0)]
    remaining: Annotated[int, Field(ge=0)] | None
    resets_at: Annotated[int, Field(ge=0, le=_LAST_SECOND)] | None


def entry_of(charge: Charge) -> bytes:
    """Returns the canonical JSON of a charge: the payload of its receipt and its entry in the audit log.

    Equal charges have equal entries. The time counts to the second. The entry of another answer to a request that was
    charged has a type of its own, so that nobody adds its units a second time.
    """
    said: dict[str, Any] = {
        "type": _CHARGE,
        "license": charge.license_id,
        "request": charge.request_id,
        "request_digest": charge.request_digest,
        "model": charge.model_digest,
        "model_name": charge.model_name,
        "explainer": charge.explainer,
        "parameters": dict(charge.parameters),
        "target": charge.target,
        "units": charge.units,
        "keyed": charge.keyed,
        "time": int(charge.time.timestamp()),
        "images": list(charge.image_digests),
        "maps": list(charge.answer.maps),
        "scalings": list(charge.answer.scalings),
        "predictions": list(charge.answer.predictions),
        "targets": list(charge.answer.targets),
    }
    if charge.repeats is not None:
        said |= {"type": _REPEAT, "repeats": charge.repeats}
    further = {"explain_if": charge.explain_if, "disclosure": charge.disclosure}
    present = {name: one.said() for name, one in further.items() if one is not None}
    if present:
        said |= {"type": _FURTHER if charge.repeats is None else _FURTHER_REPEAT, **present}
    # Without `_Claims`: they check what comes from elsewhere, and every answer for a license would wait for them.
    return canonical_json(said)


def parse_entry(entry: bytes) -> Charge:
    """Returns the charge of an entry.

    Raises:
        AuditLogError: If it is not an entry, or not in its one spelling.
    """
    try:
        charge = _charge_of(_Entry.validate_json(entry))
        spelled = entry_of(charge)
    except (ValidationError, ValueError):
        # Readers of JSON let numbers pass that are infinite or none; canonical JSON has neither.
        raise AuditLogError("it is not a record of a charge") from None
    if spelled != entry:
        raise AuditLogError("it is not spelled as keylock writes it")
    return charge


def _charge_of(claims: _AnyClaims) -> Charge:
    """Returns the charge that claims say; raises `ValueError` where their condition or disclosure is none."""
    further = claims if isinstance(claims, _FurtherClaims) else None
    condition = None if further is None else further.explain_if
    disclosure = None if further is None else further.disclosure
    return Charge(
        license_id=claims.license,
        request_id=claims.request,
        request_digest=claims.request_digest,
        model_digest=claims.model,
        model_name=claims.model_name,
        explainer=claims.explainer,
        parameters=claims.parameters,
        target=claims.target,
        units=claims.units,
        keyed=claims.keyed,
        time=datetime.fromtimestamp(claims.time, UTC),
        image_digests=tuple(claims.images),
        answer=AnswerDigests(
            maps=tuple(claims.maps),
            scalings=tuple(claims.scalings),
            predictions=tuple(claims.predictions),
            targets=tuple(claims.targets),
        ),
        explain_if=None if condition is None else Condition.read(condition),
        disclosure=None if disclosure is None else Disclosure.read(disclosure),
        repeats=claims.repeats if isinstance(claims, _RepeatClaims | _FurtherRepeatClaims) else None,
    )


class ReceiptSigner:
    """Issues receipts under one receipt key."""

    def __init__(self, key: ReceiptKey) -> None:
        """Takes the key."""
        self._key = key

    def issue(self, entry: bytes, usage: UsageNote) -> str:
        """Returns the receipt of a charge, with what the caller is told about its use.

        Args:
            entry: The charge, as `entry_of` writes it.
            usage: What the caller is told beside it.
        """
        told = {
            "replayed": usage.replayed,
            "overage_units": usage.overage_units,
            "remaining": usage.remaining,
            "resets_at": usage.resets_at,
        }
        return sign(entry, self._key.key, typ=_TYPE, cert=self._key.certificate.token, usage=told)


@dataclass(frozen=True)
class Receipt:
    """A receipt whose signatures were verified.

    Attributes:
        token: The receipt as it came: keep this.
        entry: The bytes that were signed, and that are in the audit log.
        charge: What they say.
        usage: What the answer said about the use of the license.
        certificate: Of the key that signed, with its issuer.
    """

    token: str
    entry: bytes
    charge: Charge
    usage: UsageNote
    certificate: Certificate

    @classmethod
    def verify(
        cls, token: str, trusts: Callable[[VerifyingKey], bool], *, revoked: Collection[str] = frozenset()
    ) -> Self:
        """Verifies a receipt.

        1. It has the spelling of a receipt and the one header that receipts have.
        2. Its certificate is whole, and of an issuer that is trusted.
        3. The certified key signed it.
        4. Its content is a charge, and its header says what was used.
        5. The certificate held when it was charged, and its key was not taken back.

        Args:
            token: The receipt.
            trusts: Tells whether an issuer is trusted: `trusts_any` of known keys, or `trusts_id` of a key id.
            revoked: Ids of receipt keys that the issuer has taken back. Leave it empty where the receipt is proven to
                be in the log by a checkpoint that was verified with these ids.

        Raises:
            ReceiptError: If it does not hold.
        """
        try:
            parsed = Jws.parse(token.strip(), typ=_TYPE, members=("cert", "usage"), max_bytes=MAX_RECEIPT_BYTES)
        except ValueError:
            raise ReceiptError("this is not a keylock receipt, or not all of one") from None
        certificate = Certificate.read(str(parsed.header["cert"]))
        try:
            entry = parsed.verify(certificate.key)
        except SignatureError:
            raise ReceiptError("the receipt was changed, or was not signed by the key it names") from None
        try:
            charge = parse_entry(entry)
            usage = UsageNote(**_Usage.model_validate(parsed.header["usage"]).model_dump())
        except AuditLogError as error:
            raise ReceiptError(f"the receipt cannot be read: {error}") from None
        except ValidationError:
            raise ReceiptError("the receipt cannot be read: its header does not say what was used") from None
        certificate.check(trusts, at=charge.time, revoked=revoked)
        return cls(token.strip(), entry, charge, usage, certificate)


def trusts_any(keys: Sequence[VerifyingKey]) -> Callable[[VerifyingKey], bool]:
    """Returns a test for `Receipt.verify` that trusts the keys given."""
    return lambda issuer: issuer in keys


def trusts_id(key_id: str) -> Callable[[VerifyingKey], bool]:
    """Returns a test for `Receipt.verify` that trusts the key of an id, for example of the one that issued a license.

    The id is the first 96 bits of the key's thumbprint; nobody finds another key with the same.
    """
    return lambda issuer: issuer.key_id == key_id
