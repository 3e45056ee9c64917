"""What a license grants: the options of `license issue` and `license renew` that say it, and the license they make."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from keylock.licensing import License

__all__ = [
    "DaysOption",
    "ExpiresOption",
    "TermOptions",
    "UnpaidOption",
    "covered_models",
    "end_of",
    "make_license",
    "parse_date",
    "period_of",
]

_OPTIONS: Final = {
    "models": "--model",
    "explainers": "--explainer",
    "features": "--feature",
    "quota.day": "--per-day",
    "quota.month": "--per-month",
    "quota.total": "--total",
    "rate.per_second": "--rate",
    "rate.burst": "--burst",
    "disclosure.per_day": "--disclosures-per-day",
    "disclosure.total": "--disclosures",
    "disclosure.suspended_days": "--disclosures-unpaid-days",
}
"""Terms of a license whose option has another name."""

_SPELLING: Final = "of 1 to 64 letters, digits, dots, hyphens and underscores"
_NAMES: Final = {
    "models": f"at most 100 names {_SPELLING}, or digests sha256:..., or '*' for all",
    "explainers": f"at most 100 names {_SPELLING}, or '*' for all",
}

DaysOption = Annotated[float | None, typer.Option(min=0, metavar="N", help="Days of validity. [365]")]
UnpaidOption = Annotated[
    bool, typer.Option("--unpaid", help="It is for non-payment: disclosures go on as the license says.")
]
ExpiresOption = Annotated[
    str | None, typer.Option(metavar="DATE", help="When it ends instead: 2027-06-30 or 2027-06-30T12:00:00Z.")
]


@dataclass(frozen=True, kw_only=True)
class TermOptions:
    """The terms of a license; the help says what each is. What was not given is None."""

    per_day: Annotated[int | None, typer.Option(min=0, metavar="UNITS", help="Units in a day (UTC).")] = None
    per_month: Annotated[
        int | None,
        typer.Option(min=0, metavar="UNITS", help="Units in a calendar month (UTC)."),
    ] = None
    total: Annotated[int | None, typer.Option(min=0, metavar="UNITS", help="Units in total.")] = None
    overage: Annotated[
        bool | None,
        typer.Option("--overage/--no-overage", help="Beyond the quota: answer and note it, or refuse. [refuse]"),
    ] = None
    rate: Annotated[float | None, typer.Option(min=0, metavar="N", help="Rate: images a second, on average.")] = None
    burst: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Burst: images at once. [one second of --rate]")
    ] = None
    max_images: Annotated[int | None, typer.Option(min=1, metavar="N", help="Most images in a request.")] = None
    max_pixels: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most pixels of an image, width times height.")
    ] = None
    similar_queries: Annotated[
        bool | None,
        typer.Option(
            "--similar-queries/--no-similar-queries",
            help="Predict near copies of a picture beyond the server's query guard, or not. [not]",
        ),
    ] = None
    disclosures_per_day: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Disclosures in a day (UTC), to those with a right to them. [none]"),
    ] = None
    disclosures: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Disclosures in total. [no limit but that of a day]")
    ] = None
    disclosures_unpaid_days: Annotated[
        int | None,
        typer.Option(min=0, metavar="DAYS", help="Days for which they outlive a suspension for non-payment. [0]"),
    ] = None
    feature: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Further terms, as JSON or text; may be repeated."),
    ] = None

    def as_fields(self) -> dict[str, Any]:
        """Return them as fields of a license; what was not given is left out.

        Raises:
            InputError: If options contradict each other, or a feature is none.
        """
        from keylock.errors import InputError

        found: dict[str, Any] = {
            "max_images": self.max_images,
            "max_pixels": self.max_pixels,
            "similar_queries": self.similar_queries,
        }
        quota = {"day": self.per_day, "month": self.per_month, "total": self.total, "overage": self.overage}
        found["quota"] = {name: value for name, value in quota.items() if value is not None} or None
        disclosure = {
            "per_day": self.disclosures_per_day,
            "total": self.disclosures,
            "suspended_days": self.disclosures_unpaid_days,
        }
        found["disclosure"] = {name: value for name, value in disclosure.items() if value is not None} or None
        if self.burst is not None and self.rate is None:
            raise InputError("--burst needs --rate: say how many images a second fill the bucket")
        if self.rate is not None:
            found["rate"] = {"per_second": self.rate, "burst": self.burst or max(1, round(self.rate))}
        found["features"] = dict(map(_feature, self.feature)) if self.feature else None
        return {name: value for name, value in found.items() if value is not None}


def covered_models(models: list[str] | None, bundle: Path | None, explainers: list[str] | None) -> tuple[str, ...]:
    """Returns the models to cover; they and the explainers are checked against the bundle where there is one.

    Raises:
        InputError: If neither a model nor a bundle was given, or the bundle has no such model or explainer.
    """
    from keylock.bundle import open_bundle
    from keylock.errors import InputError, UnknownNameError

    if bundle is None and not models:
        raise InputError("say which models the license covers: --bundle BUNDLE, --model NAME or --model '*'")
    if bundle is None:
        return tuple(models or ())
    manifest = open_bundle(bundle, trusted=None).manifest
    of_bundle = [manifest.name, manifest.model_digest]
    for kind, names, known in (
        ("model", models, of_bundle),
        ("explainer", explainers, [entry.name for entry in manifest.explainers]),
    ):
        for name in names or ():
            if name != "*" and name not in known:
                raise UnknownNameError(kind, name, known)
    return tuple(dict.fromkeys((*(models or ()), manifest.model_digest)))


def make_license(fields: dict[str, Any]) -> "License":
    """Makes a license of its fields.

    Raises:
        InputError: If they do not make one.
    """
    from pydantic import ValidationError

    from keylock.errors import InputError
    from keylock.licensing import License
    from keylock.text.wanted import part, wanted

    try:
        return License.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = first["loc"]
        if place == ("disclosure", "per_day") and first["type"] == "missing":
            raise InputError("say how many disclosures there may be in a day: --disclosures-per-day N") from None
        names = [str(step) for step in place if isinstance(step, str)]
        option = _OPTIONS.get(".".join(names), "--" + "-".join(names).replace("_", "-"))
        if first["type"] == "value_error":
            said = first["msg"].removeprefix("Value error, ")
            raise InputError(f"cannot issue this license: {f'{option}: ' if names else ''}{said}") from None
        words = _NAMES.get(names[0]) or wanted(part(License.model_json_schema(), place))
        raise InputError(f"cannot issue this license: {option} is wrong: give {words}") from None


def end_of(start: datetime, days: float | None, expires: str | None, *, now: datetime) -> datetime:
    """Returns when a license ends.

    Args:
        start: When it starts.
        days: `--days`.
        expires: `--expires`.
        now: The time.

    Raises:
        InputError: If both options were given, one makes no sense, or the license would be over already.
    """
    from keylock.errors import InputError

    if expires is not None and days is not None:
        raise InputError("give --days or --expires, not both")
    try:
        end = (
            start + timedelta(days=365 if days is None else days)
            if expires is None
            else parse_date(expires, "--expires")
        )
    except OverflowError:
        raise InputError("--days is too large: no calendar reaches that far") from None
    if end <= now:
        option = "--days" if expires is None else "--expires"
        raise InputError(
            f"the license would be over already, on {end:%Y-%m-%d %H:%M} UTC: give a later end by {option}"
        )
    return end


def period_of(since: str | None, until: str | None) -> "tuple[datetime | None, datetime | None]":
    """Returns the moments that `--since` and `--until` name.

    Raises:
        InputError: If one names none, or nothing lies between them.
    """
    from keylock.errors import InputError

    start = None if since is None else parse_date(since, "--since")
    end = None if until is None else parse_date(until, "--until")
    if start is not None and end is not None and start >= end:
        raise InputError(f"nothing lies between --since {since} and --until {until}: give --until a later moment")
    return start, end


def parse_date(text: str, option: str) -> datetime:
    """Returns the moment a text names, in UTC where it names no zone.

    Raises:
        InputError: If it names none.
    """
    from keylock.errors import InputError

    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InputError(f"{option} must be a date such as 2027-06-30 or 2027-06-30T12:00:00Z") from None


def _feature(text: str) -> tuple[str, object]:
    from keylock.errors import InputError

    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InputError(f"--feature {text!r} is no NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
