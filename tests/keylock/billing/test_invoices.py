"""invoices.py against a second implementation that prices one unit after the other, and over a whole store."""

import csv
import io
import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("jinja2")

from html_page import Page
from hypothesis import given, settings
from hypothesis import strategies as st

from keylock.billing import make_invoices, parse_prices
from keylock.billing.invoices import month_named
from keylock.cli import main
from keylock.crypto.digests import digest_of
from keylock.crypto.signing import Home
from keylock.errors import InputError
from keylock.licensing import AnswerDigests, Charge, License, Quota
from keylock.licensing.conditions import Condition
from keylock.store import Ledger, LicenseStore
from keylock.store.ledger import ChargeRequest
from keylock.store.logged_charges import record_charge
from keylock.store.usage import Line

NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)
TOML = """
currency = "EUR"

[[prices]]
from = 2026-01-01
tiers = [{ up_to = 10, unit = "0.051" }, { up_to = 25, unit = "0.047" }, { unit = "0.0333" }]

[[prices]]
from = 2026-11-16
overage = "0.08"
tiers = [{ up_to = 20, unit = "0.06" }, { unit = "0.025" }]
"""
PRICES = parse_prices(TOML, name="prices.toml")


def line(hours, units, overage=0, *, license_id="lic_1", customer="Acme", number=0):
    return Line(
        charged_at=NOVEMBER + timedelta(hours=hours), license_id=license_id, customer=customer, billing_id=customer,
        request_id=f"r{number}", model_digest="sha256:0", explainer="grad_cam", images=max(1, units), units=units,
        overage=overage,
    )  # fmt: skip


def one_by_one(lines):
    """What each customer owes: the sum of items, whose units are priced one after the other."""
    units, owed = defaultdict(int), defaultdict(lambda: defaultdict(Decimal))
    for each in lines:
        held = PRICES.lists[each.charged_at >= datetime(2026, 11, 16, tzinfo=UTC)]
        for place in range(each.units):
            units[each.customer] += 1
            number = units[each.customer]
            tier = next(
                t for t in range(len(held.tiers)) if held.tiers[t].up_to is None or number <= held.tiers[t].up_to
            )
            beyond = place >= each.units - each.overage
            price = held.overage if beyond and held.overage is not None else held.tiers[tier].unit
            owed[each.customer][each.license_id, held.begins, tier, beyond] += price
    cent = Decimal("0.01")
    return {name: sum(one.quantize(cent, ROUND_HALF_UP) for one in items.values()) for name, items in owed.items()}


charges = st.lists(
    st.tuples(
        st.integers(0, 719), st.integers(0, 12), st.integers(0, 12), st.sampled_from(["lic_1", "lic_2"]),
        st.sampled_from(["Acme", "Bolt"]),
    ),
    max_size=12,
)  # fmt: skip


@given(charges)
@settings(deadline=None)
def test_invoices_are_what_one_unit_after_the_other_costs(drawn):
    lines = [
        line(hours, units, min(units, overage), license_id=f"{name}-{customer}", customer=customer, number=number)
        for number, (hours, units, overage, name, customer) in enumerate(sorted(drawn))
    ]
    invoices = {one.customer: one for one in make_invoices(lines, PRICES, month=NOVEMBER)}
    expected = one_by_one(lines)
    assert {name: one.total for name, one in invoices.items() if one.units} == expected
    for name, invoice in invoices.items():
        mine = [each for each in lines if each.customer == name]
        assert invoice.units == sum(each.units for each in mine)
        assert invoice.overage == sum(each.overage for each in mine)
        assert invoice.requests == len(mine)


def test_a_list_that_begins_within_the_month_goes_on_counting():
    lines = [line(0, 15), line(24 * 15 - 1, 3), line(24 * 15, 4), line(24 * 16, 2, 1)]
    [invoice] = make_invoices(lines, PRICES, month=NOVEMBER)
    assert [
        (str(i.prices_from.date()), i.first_unit, i.overage, i.units, str(i.unit_price)) for i in invoice.items
    ] == [
        ("2026-01-01", 1, False, 10, "0.051"),
        ("2026-01-01", 11, False, 8, "0.047"),
        # Units 19 and 20 are in the first tier of the new list, those from 21 on in its second.
        ("2026-11-16", 1, False, 2, "0.06"),
        ("2026-11-16", 21, False, 3, "0.025"),
        ("2026-11-16", 21, True, 1, "0.08"),
    ]


def test_months_are_named_by_year_and_month():
    assert month_named("2026-12") == (datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    for wrong in ("2026", "2026-13", "November", "9999-12-01", "9999-12"):
        with pytest.raises(InputError, match="is no month"):
            month_named(wrong)


# A store in which everything happens that a bill may be wrong about.


def charge(ledger, license, number, when, *, images=1, price=1, hits=None, digest=None):
    """Charges a request as a server does; of one with a condition as many images as are hit."""
    order = ChargeRequest(
        license=license, request_id=f"r{number}", request_digest=digest or digest_of(b"%d" % number),
        model_digest=digest_of(b"model"), explainer="grad_cam", images=images, units=images * price,
        attempt=f"a{number}-{when}",
    )  # fmt: skip
    one = digest_of(b"answer")
    maps = tuple(one if hits is None or place < hits else None for place in range(images))
    answer = AnswerDigests(maps=maps, scalings=(None,) * images, predictions=(one,) * images, targets=maps)
    asked = Charge(
        license_id=license.id, request_id=order.request_id, request_digest=order.request_digest,
        model_digest=order.model_digest, model_name="m", explainer="grad_cam", parameters={}, target=-1,
        units=order.units, keyed=True, time=when, image_digests=(one,) * images, answer=answer,
        explain_if=None if hits is None else Condition("margin_below", below=0.5),
    )  # fmt: skip
    reservation = ledger.reserve(order, now=when, lifetime_s=60).result(30)
    return ledger.commit(reservation, asked).result(30)


@pytest.fixture
def billed(tmp_path, monkeypatch):
    """A vendor whose store has two customers, repeats, overage, conditions, and other months."""
    home = Home.open(tmp_path / "home")
    (home.path / "prices.toml").write_text(TOML)
    monkeypatch.setenv("KEYLOCK_HOME", str(home.path))
    grants = {}
    with LicenseStore(home.licenses_url) as store:
        for name, customer, quota in (
            ("lic_a", "Acme & Söhne", Quota(month=12, overage=True)),
            ("lic_b", "Acme & Söhne", Quota()),
            ("lic_c", '=HYPERLINK("x")', Quota()),
        ):
            grants[name] = License(
                id=name, customer=customer, models=("*",), explainers=("*",), issued_at=NOVEMBER, not_before=NOVEMBER,
                expires=NOVEMBER + timedelta(days=365), quota=quota,
            )  # fmt: skip
            store.add(grants[name], issuer="key")
        ledger = Ledger(store.database, record=record_charge)
        hour = timedelta(hours=1)
        charge(ledger, grants["lic_a"], 0, NOVEMBER - hour / 3600, price=100)
        for number in range(1, 8):
            for _ in range(2):  # Each of them is sent again.
                charge(ledger, grants["lic_a"], number, NOVEMBER + 100 * number * hour, price=3)
        charge(ledger, grants["lic_b"], 8, NOVEMBER + 300 * hour, images=10, price=2, hits=3)
        charge(ledger, grants["lic_b"], 9, NOVEMBER + 301 * hour, images=4, price=2, hits=0)
        charge(ledger, grants["lic_c"], 10, NOVEMBER + 719 * hour, images=5)
        charge(ledger, grants["lic_c"], 11, datetime(2026, 12, 1, tzinfo=UTC), price=1000)
        ledger.close()
    return home


def test_the_command_writes_what_the_ledger_has(billed, tmp_path, capsys):
    assert main(["usage", "invoice", "--month", "2026-11", "--out", str(tmp_path / "bills"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["customer"], one["units"], one["requests"]) for one in told] == [
        ('=HYPERLINK("x")', 5, 1), ("Acme & Söhne", 27, 9),
    ]  # fmt: skip
    files = sorted((tmp_path / "bills").iterdir())
    assert len(files) == 4
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    items = [row for path in files if path.suffix == ".csv" for row in csv.DictReader(io.StringIO(path.read_text()))]
    assert sum(int(row["units"]) for row in items) == 32
    assert sum(int(row["units"]) for row in items if row["overage"] == "yes") == 9
    assert {row["customer"] for row in items} == {"Acme & Söhne", '\'=HYPERLINK("x")'}
    assert main(["usage", "export", "--since", "2026-11-01", "--until", "2026-12-01"]) == 0
    exported = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sum(int(row["units"]) for row in exported) == 32
    for bill in told:
        mine = [row for row in items if row["customer"].lstrip("'") == bill["customer"]]
        assert sum(Decimal(row["amount"]) for row in mine) == Decimal(bill["total"])
        for row in mine:
            exact = int(row["units"]) * Decimal(row["unit_price"])
            assert Decimal(row["amount"]) == exact.quantize(Decimal("0.01"), ROUND_HALF_UP)
    [page] = [path for path in files if path.suffix == ".html" and path.name.startswith("acme")]
    read = Page(page.read_text())
    read.check()
    for word in ("Invoice for November 2026", "Acme & Söhne", "beyond the quota", told[1]["total"], "lic_a", "lic_b"):
        assert word in read.shown


def test_the_command_says_what_is_wrong(billed, tmp_path, capsys):
    month = ["usage", "invoice", "--month", "2026-11"]
    assert main([*month, "--out", str(tmp_path / "bills")]) == 0
    assert main([*month, "--out", str(tmp_path / "bills")]) == 3
    assert "is not overwritten: name another directory by --out" in capsys.readouterr().err
    assert main([*month, "--customer", "Nobody"]) == 3
    assert "keylock license list" in capsys.readouterr().err
    assert main(["usage", "invoice", "--month", "November"]) == 3
    assert main([*month, "--prices", str(tmp_path / "none.toml")]) == 3
    assert "none.toml" in capsys.readouterr().err
    assert main(["usage", "invoice", "--month", "2026-09"]) == 0
    assert "nothing was charged in 2026-09" in capsys.readouterr().err
    assert main([*month, "--customer", "Acme & Söhne"]) == 0
    assert "27" in capsys.readouterr().out
    (billed.path / "prices.toml").unlink()
    assert main(month) == 3
    assert "prices.toml: write down there what a unit costs, or name the file by --prices" in capsys.readouterr().err


def test_books_that_do_not_agree_make_no_invoice(billed, capsys):
    from sqlalchemy import text

    with LicenseStore(billed.licenses_url) as store, store.database.transaction(writes=True) as connection:
        connection.execute(text("UPDATE ledger SET units = units - 1 WHERE request_id = 'r3'"))
    assert main(["usage", "invoice", "--month", "2026-11"]) == 11
    told = capsys.readouterr()
    assert "the books do not agree" in told.err
    assert not told.out
