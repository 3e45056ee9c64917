"""What units cost: lists that hold from a moment on, each with prices by how many units a customer used in the month.

    currency = "EUR"

    [[prices]]
    from = 2026-01-01
    overage = "0.08"
    tiers = [{ up_to = 1000, unit = "0.05" }, { unit = "0.04" }]

Prices are texts, so that they are exact. Units beyond a quota cost `overage`, or what the others cost where it is left
out; they count for the tiers like all others.
"""

import tomllib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from decimal import ROUND_HALF_UP, Decimal, localcontext
from itertools import pairwise
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from keylock.errors import InputError
from keylock.text.wanted import part, wanted

__all__ = ["PriceList", "Prices", "Tier", "exactly", "parse_prices"]

_MOST_DIGITS: Final = 12
_WORDS: Final = {
    "currency": 'three capital letters, such as "EUR"',
    "from": "a date, such as 2026-01-01, or a moment",
    "overage": 'a price as a text, such as "0.05", 0 or more',
    "prices": "tables, each with from and tiers",
    "tiers": "tables, each with unit and all but the last with up_to",
    "unit": 'a price as a text, such as "0.05", 0 or more',
}
_EXACT: Final = 60
"""Digits of sums and products: more than units times prices can have."""


def _exact(value: object) -> object:
    if isinstance(value, float) or (isinstance(value, str) and value.strip() != value):
        raise ValueError('write prices as texts, such as "0.05", so that they are exact')
    return value


def _midnight(value: object) -> object:
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime.combine(value, time(), UTC)
    return value


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC)


_Price = Annotated[
    Decimal, BeforeValidator(_exact), Field(ge=0, max_digits=2 * _MOST_DIGITS, decimal_places=_MOST_DIGITS)
]
_Moment = Annotated[datetime, BeforeValidator(_midnight), AfterValidator(_in_utc)]


class Tier(BaseModel):
    """A price for some of the units of a month.

    Attributes:
        up_to: The last unit of the month that it is for, counted from 1; None for all that follow.
        unit: What a unit costs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    up_to: Annotated[int, Field(ge=1, le=2**53)] | None = None
    unit: _Price


class PriceList(BaseModel):
    """Prices that hold from a moment on, until the next list does.

    Attributes:
        begins: From when on (UTC); written `from`.
        tiers: By how many units were used in the month, ascending; the last one has no end.
        overage: What a unit beyond the quota costs; None for what others cost.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    begins: _Moment = Field(alias="from")
    tiers: Annotated[tuple[Tier, ...], Field(min_length=1, max_length=100)]
    overage: _Price | None = None

    @model_validator(mode="after")
    def _check_tiers(self) -> Self:
        ends = [tier.up_to for tier in self.tiers]
        known = [end for end in ends if end is not None]
        if ends[-1] is not None or len(known) != len(ends) - 1:
            raise ValueError("every tier but the last has up_to, and the last has none")
        if any(one >= other for one, other in pairwise(known)):
            raise ValueError("the tiers ascend: each up_to is larger than the one before")
        return self

    def split(self, first: int, units: int) -> list[tuple[Tier, int]]:
        """Splits units by the tiers that they are in.

        Args:
            first: Which unit of the month the first of them is, from 1.
            units: How many.

        Returns:
            Each tier with how many units are in it, those without left out.
        """
        found, last = [], first + units - 1
        for tier in self.tiers:
            end = last if tier.up_to is None else min(last, tier.up_to)
            if end >= first:
                found.append((tier, end - first + 1))
                first = end + 1
        return found


class Prices(BaseModel):
    """All lists of a vendor.

    Attributes:
        currency: Its three letters (ISO 4217).
        decimals: To how many decimals amounts are rounded.
        lists: By when they begin, ascending; written `prices`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    decimals: Annotated[int, Field(ge=0, le=8)] = 2
    lists: Annotated[tuple[PriceList, ...], Field(min_length=1, max_length=1000)] = Field(alias="prices")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if any(one.begins >= other.begins for one, other in pairwise(self.lists)):
            raise ValueError("the lists ascend: each begins after the one before")
        return self

    def at(self, moment: datetime) -> PriceList:
        """Returns the list that holds at a moment.

        Raises:
            InputError: If none does.
        """
        place = bisect_right([one.begins for one in self.lists], moment)
        if not place:
            raise InputError(
                f"there are no prices for {moment:%Y-%m-%d %H:%M} UTC: the first list begins on "
                f"{self.lists[0].begins:%Y-%m-%d %H:%M}; add an earlier one"
            )
        return self.lists[place - 1]

    def amount(self, units: int, unit: Decimal) -> Decimal:
        """Returns what units cost: their number times the price, rounded once, halves away from zero."""
        with exactly():
            return (units * unit).quantize(Decimal(1).scaleb(-self.decimals), ROUND_HALF_UP)


@contextmanager
def exactly() -> Iterator[None]:
    """Computes with so many digits that no sum and no product of units and prices is rounded."""
    with localcontext() as context:
        context.prec = _EXACT
        yield


def parse_prices(text: str, *, name: str) -> Prices:
    """Reads price lists.

    Args:
        text: TOML.
        name: What to call it in errors: the path of its file.

    Raises:
        InputError: If it says something else than prices; the message says where.
    """
    try:
        return Prices.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name} is no TOML: {error}") from None
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise InputError(
            f"the prices in {name} cannot be used: {where + ': ' if where else ''}{_said(first)}"
        ) from None


def _said(error: Any) -> str:  # noqa: ANN401 - what pydantic says of one mistake
    """Returns what is wrong with a value, in words."""
    if error["type"] == "value_error":
        return str(error["msg"].removeprefix("Value error, "))
    if error["type"] == "extra_forbidden":
        return "there is nothing of this name in a price list"
    names = [step for step in error["loc"] if isinstance(step, str)]
    words = _WORDS.get(names[-1] if names else "") or wanted(part(Prices.model_json_schema(), error["loc"]))
    return f"give {words}"
