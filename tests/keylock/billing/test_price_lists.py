"""price_lists.py: which price holds when and for which unit, and what is no price list."""

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylock.billing import PriceList, Tier, parse_prices
from keylock.errors import InputError

GOOD = """
currency = "EUR"

[[prices]]
from = 2026-01-01
tiers = [{ up_to = 1000, unit = "0.05" }, { unit = "0.04" }]

[[prices]]
from = 2026-11-16T12:00:00+01:00
overage = "0.08"
tiers = [{ unit = "0.055" }]
"""


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_lists_hold_from_the_moment_they_name_to_the_next_one():
    prices = parse_prices(GOOD, name="prices.toml")
    first, second = prices.lists
    assert first.begins == at("2026-01-01")
    assert second.begins == at("2026-11-16T11:00:00")
    assert prices.at(at("2026-01-01")) is first
    assert prices.at(at("2026-11-16T10:59:59")) is first
    assert prices.at(at("2026-11-16T11:00:00")) is second
    with pytest.raises(InputError, match=r"no prices for 2025-12-31 23:59 UTC: the first list begins on 2026-01-01"):
        prices.at(at("2025-12-31T23:59:59"))


@pytest.mark.parametrize(
    ("units", "unit", "amount"),
    [(1, "0.005", "0.01"), (3, "0.005", "0.02"), (1, "0.0049", "0.00"), (7, "0.05", "0.35"), (0, "9", "0.00")],
)
def test_amounts_are_rounded_once_halves_up(units, unit, amount):
    assert str(parse_prices(GOOD, name="x").amount(units, Decimal(unit))) == amount


def test_amounts_are_exact_however_large():
    prices = parse_prices(GOOD.replace('currency = "EUR"', 'currency = "EUR"\ndecimals = 8'), name="x")
    amount = prices.amount(2**53 - 1, Decimal("1234567.12345678"))
    assert Fraction(amount) == (2**53 - 1) * Fraction(123456712345678, 10**8)


@given(st.lists(st.integers(1, 60), unique=True, max_size=4).map(sorted), st.integers(1, 70), st.integers(0, 70))
def test_units_are_in_the_tiers_of_their_numbers(ends, first, units):
    tiers = [Tier(up_to=end, unit=Decimal(place)) for place, end in enumerate(ends)]
    tiers.append(Tier(unit=Decimal(99)))
    held = PriceList.model_validate({"from": at("2026-01-01"), "tiers": tiers})
    split = [tier for tier, some in held.split(first, units) for _ in range(some)]
    # One unit at a time.
    expected = [
        next(tier for tier in tiers if tier.up_to is None or number <= tier.up_to)
        for number in range(first, first + units)
    ]
    assert split == expected


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"EUR"', '"euro"', 'currency: give three capital letters, such as "EUR"'),
        ('currency = "EUR"', "", "currency: give three capital letters"),
        ('currency = "EUR"', 'currency = "EUR"\ndecimals = 9', "decimals: give a whole number from 0 to 8"),
        ("up_to = 1000,", "up_to = 0,", r"prices\.\d\.tiers\.0\.up_to: give a whole number from 1 to 9007199254740992"),
        ("from = 2026-01-01", "from = true", r"prices\.\d\.from: give a date, such as 2026-01-01"),
        ('"0.05"', "0.05", "write prices as texts"),
        ('"0.05"', '"much"', 'unit: give a price as a text, such as "0.05", 0 or more'),
        ('"0.05"', '"-1"', "unit: give a price as a text"),
        ('"0.05"', '"NaN"', "unit: give a price as a text"),
        ('unit = "0.04"', 'up_to = 2000, unit = "0.04"', "the last has none"),
        ("up_to = 1000, ", "", "every tier but the last has up_to"),
        ("2026-11-16T12:00:00+01:00", "2025-01-01", "begins after the one before"),
        ("overage", "overrun", "overrun: there is nothing of this name in a price list"),
        ("[[prices]]", "[[lists]]", "prices: give tables, each with from and tiers"),
        ("from = 2026-01-01", "from = 2026-13-01", "is no TOML"),
    ],
)
def test_what_is_no_price_list_is_refused_with_what_is_wrong(old, new, said):
    with pytest.raises(InputError, match=said) as caught:
        parse_prices(GOOD.replace(old, new), name="prices.toml")
    assert "prices.toml" in caught.value.message


def test_tiers_that_do_not_ascend_are_refused():
    wrong = GOOD.replace('{ unit = "0.04" }', '{ up_to = 1000, unit = "0.04" }, { unit = "0.03" }')
    with pytest.raises(InputError, match="the tiers ascend"):
        parse_prices(wrong, name="prices.toml")
