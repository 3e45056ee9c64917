"""What a license says, and whether it covers a request. Signatures, clocks and revocation are elsewhere."""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator

from keylock.crypto.signing import canonical_json
from keylock.errors import LicenseError, LicenseReason

__all__ = [
    "ANY",
    "DisclosureTerms",
    "License",
    "LicenseStatus",
    "Quota",
    "Rate",
    "StoredLicense",
    "check",
    "check_size",
    "new_license_id",
]

ANY: Final = "*"


def _to_seconds(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)


def _check_customer(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError("the customer's name must be printable, on one line, without white space at its ends")
    return text


def _check_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError("a name is listed twice")
    return names


def _check_finite(features: dict[str, JsonValue]) -> dict[str, JsonValue]:
    # JSON has no NaN and no infinity, but its readers let them pass.
    try:
        canonical_json(features)
    except ValueError:
        raise ValueError("a feature is NaN or infinite, which no token can say") from None
    return features


_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

Moment = Annotated[AwareDatetime, AfterValidator(_to_seconds)]
Model = Annotated[str, Field(pattern=rf"^(\*|{_NAME}|sha256:[0-9a-f]{{64}})$")]
Explainer = Annotated[str, Field(pattern=rf"^(\*|(captum:)?{_NAME})$")]


_MOST: Final = 2**53 - 1  # The largest whole number every reader of JSON keeps exactly.
_Units = Annotated[int, Field(ge=0, le=_MOST)]


class Quota(BaseModel):
    """How many units a license may use, by calendar day, calendar month (UTC) and in total.

    Attributes:
        day: Units in a day; None where there is no limit.
        month: Units in a month; None where there is no limit.
        total: Units altogether; None where there is no limit.
        overage: Whether use beyond the quota is answered, and noted as such, instead of refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    day: _Units | None = None
    month: _Units | None = None
    total: _Units | None = None
    overage: bool = False


class Rate(BaseModel):
    """How fast a license may be used: a token bucket.

    Attributes:
        per_second: Images a second that fill the bucket.
        burst: Images the bucket holds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_second: Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
    burst: Annotated[int, Field(ge=1, le=1_000_000)]


class DisclosureTerms(BaseModel):
    """How many explanations are disclosed to those who have a right to them, beside quota and rate.

    Attributes:
        per_day: Most in a day (UTC).
        total: Most altogether; None where there is no limit.
        suspended_days: For how many days they outlive a suspension for non-payment.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_day: Annotated[int, Field(ge=1, le=10_000)]
    total: _Units | None = None
    suspended_days: Annotated[int, Field(ge=0, le=3660)] = 0


class License(BaseModel):
    """A grant to one customer. Times are in UTC, to the second.

    Attributes:
        id: Names the license, in the store and in every answer it pays for.
        customer: To whom it was granted.
        models: Names or digests of models; `*` is every model of the issuer.
        explainers: Names of explainers; `*` is every one.
        issued_at: When it was granted.
        not_before: From when it holds.
        expires: From when it holds no more.
        quota: How much may be used.
        rate: How fast; None where there is no limit.
        max_images: Most images in one request; None where the server's limit is the only one.
        max_pixels: Most pixels of one image, width times height; None where the server's limit is the only one.
        similar_queries: Whether predictions of near copies of a picture are answered beyond the budgets of a server's
            query guard. Whoever has many of them can explain them without paying for explanations.
        disclosure: How many disclosures it is entitled to; None where to none.
        features: Whatever else was agreed. `billing_id` names the customer in exports of usage; nothing else is read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    customer: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_customer)]
    models: Annotated[tuple[Model, ...], Field(min_length=1, max_length=100), AfterValidator(_check_distinct)]
    explainers: Annotated[tuple[Explainer, ...], Field(min_length=1, max_length=100), AfterValidator(_check_distinct)]
    issued_at: Moment
    not_before: Moment
    expires: Moment
    quota: Quota = Quota()
    rate: Rate | None = None
    max_images: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_pixels: Annotated[int, Field(ge=1, le=2**40)] | None = None
    similar_queries: bool = False
    disclosure: DisclosureTerms | None = None
    features: Annotated[dict[str, JsonValue], AfterValidator(_check_finite)] = {}

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        if self.expires <= self.not_before:
            raise ValueError("a license must expire after it starts")
        return self


class LicenseStatus(StrEnum):
    """Where a license stands."""

    ACTIVE = "active"
    NOT_YET_VALID = "not yet valid"
    EXPIRED = "expired"
    SUSPENDED = "suspended"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class StoredLicense:
    """A license as the store knows it.

    Attributes:
        license: What was granted.
        issuer: Id of the key that signed it.
        revoked_at: When it was revoked; None where it was not.
        revoked_why: What the vendor noted then.
        suspended_at: When it was suspended; None where it is not.
        suspended_why: What the vendor noted then.
        suspended_unpaid: Whether it is for non-payment.
        refuse_before: Tokens issued before this time are refused; None where none are.
    """

    license: License
    issuer: str
    revoked_at: datetime | None = None
    revoked_why: str = ""
    suspended_at: datetime | None = None
    suspended_why: str = ""
    suspended_unpaid: bool = False
    refuse_before: datetime | None = None

    def discloses(self, now: datetime) -> bool:
        """Tells whether a suspension leaves disclosures open at a time: one for non-payment does for some days."""
        if self.suspended_at is None:
            return True
        terms = self.license.disclosure
        return (
            self.suspended_unpaid
            and terms is not None
            and now < self.suspended_at + timedelta(days=terms.suspended_days)
        )

    def status(self, now: datetime) -> LicenseStatus:
        """Tells where the license stands at a time."""
        if self.revoked_at is not None:
            return LicenseStatus.REVOKED
        if now >= self.license.expires:
            return LicenseStatus.EXPIRED
        if self.suspended_at is not None:
            return LicenseStatus.SUSPENDED
        return LicenseStatus.NOT_YET_VALID if now < self.license.not_before else LicenseStatus.ACTIVE


def new_license_id() -> str:
    """Returns a new random id, `lic_` and 20 hexadecimal digits."""
    return "lic_" + secrets.token_hex(10)


def check(license: License, *, model_name: str, model_digest: str, explainer: str | None = None) -> None:
    """Returns when the license covers a request.

    Args:
        license: A license that was verified.
        model_name: The model's name in the bundle.
        model_digest: The model's digest in the bundle.
        explainer: The explainer asked for; None where no explanation is asked for.

    Raises:
        LicenseError: If it does not, with the reason `WRONG_MODEL` or `WRONG_EXPLAINER`.
    """
    if not {ANY, model_name, model_digest} & set(license.models):
        raise LicenseError(
            LicenseReason.WRONG_MODEL,
            f"the license {license.id} does not cover the model {model_name}: it covers {', '.join(license.models)}",
        )
    if explainer is not None and not {ANY, explainer} & set(license.explainers):
        raise LicenseError(
            LicenseReason.WRONG_EXPLAINER,
            f"the license {license.id} does not cover the explainer {explainer}: "
            f"it covers {', '.join(license.explainers)}",
        )


def check_size(license: License, *, images: int | None = None, pixels: int | None = None) -> None:
    """Returns when a request is not larger than the license allows.

    Args:
        license: A license that was verified.
        images: Images in the request; None where they are not to be checked.
        pixels: Width times height of one of them; None where it is not to be checked.

    Raises:
        LicenseError: If it is, with the reason `BATCH_TOO_LARGE` or `IMAGE_TOO_LARGE`.
    """
    if images is not None and license.max_images is not None and images > license.max_images:
        raise LicenseError(
            LicenseReason.BATCH_TOO_LARGE,
            f"the license {license.id} allows {license.max_images} images in a request and this one has {images}: "
            "send several requests",
        )
    if pixels is not None and license.max_pixels is not None and pixels > license.max_pixels:
        raise LicenseError(
            LicenseReason.IMAGE_TOO_LARGE,
            f"the license {license.id} allows images of {license.max_pixels:,} pixels and one has {pixels:,}: "
            "send a smaller one",
        )
