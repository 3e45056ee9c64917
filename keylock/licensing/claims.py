"""What a license says, and whether it covers a request. Signatures, clocks and revocation are elsewhere."""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator

from keylock.errors import LicenseError, LicenseReason
from keylock.signing import canonical_json

__all__ = ["ANY", "License", "LicenseStatus", "StoredLicense", "check", "new_license_id"]

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
Explainer = Annotated[str, Field(pattern=rf"^(\*|{_NAME})$")]


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
        features: Reserved for grants that come later; nothing reads it yet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    customer: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_customer)]
    models: Annotated[tuple[Model, ...], Field(min_length=1, max_length=100), AfterValidator(_check_distinct)]
    explainers: Annotated[tuple[Explainer, ...], Field(min_length=1, max_length=100), AfterValidator(_check_distinct)]
    issued_at: Moment
    not_before: Moment
    expires: Moment
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
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class StoredLicense:
    """A license as the store knows it.

    Attributes:
        license: What was granted.
        issuer: Id of the key that signed it.
        revoked_at: When it was revoked; None where it was not.
        revoked_why: What the vendor noted then.
    """

    license: License
    issuer: str
    revoked_at: datetime | None
    revoked_why: str

    def status(self, now: datetime) -> LicenseStatus:
        """Tells where the license stands at a time."""
        if self.revoked_at is not None:
            return LicenseStatus.REVOKED
        if now >= self.license.expires:
            return LicenseStatus.EXPIRED
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
