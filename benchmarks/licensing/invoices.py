"""Whether invoices are, to the unit, what was charged: 100,000 requests with repeats, overage and conditions.

    python benchmarks/licensing/invoices.py

Requests go to the ledger of a store as a server sends them, many at a time: two customers with three licenses, one of
them beyond its quota for most of the time, some requests with a condition that a part of their images meets, a fifth of
all sent again and a tenth given up. Time goes on through two months, in each of which the prices change once. Counted
beside it, in plain numbers, is what every answer said that it cost. At the end this, the ledger, the counters, the
audit log and the invoices with their CSV must all have the same units for each license and month, and the amounts of
the invoices are computed a second time, one unit after the other, as fractions.
"""

import argparse
import json
import random
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

from world import postgresql, record

from keylock.billing import Prices, make_invoices, parse_prices
from keylock.billing.invoices import Invoice, check_against_log, csv_rows, month_named
from keylock.crypto.digests import digest_of
from keylock.errors import QuotaError
from keylock.licensing import AnswerDigests, Charge, License, Quota
from keylock.licensing.conditions import Condition
from keylock.store import Ledger, LicenseStore
from keylock.store.ledger import ChargeRequest
from keylock.store.logged_charges import compare_with_ledger, logged_charges, record_charge
from keylock.store.reconcile import reconcile
from keylock.store.usage import charged

MONTHS = ("2026-11", "2026-12")
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
SPAN = timedelta(days=61)
TOML = """
currency = "EUR"

[[prices]]
from = 2026-01-01
overage = "0.0731"
tiers = [{ up_to = 10000, unit = "0.05" }, { up_to = 50000, unit = "0.0415" }, { unit = "0.0333" }]

[[prices]]
from = 2026-11-17
tiers = [{ up_to = 20000, unit = "0.06" }, { unit = "0.0275" }]

[[prices]]
from = 2026-12-10T08:30:00Z
overage = "0.09"
tiers = [{ unit = "0.049" }]
"""
ONE = digest_of(b"answer")


@dataclass(frozen=True)
class Asked:
    """A request that is under way."""

    order: ChargeRequest
    when: datetime
    hits: int | None
    reserved: Any


def licenses() -> dict[str, License]:
    """Three licenses of two customers; the quota of the first is small."""
    made = {}
    for name, customer, quota in (
        ("lic_a", "Acme", Quota(month=20_000, overage=True)),
        ("lic_b", "Acme", Quota()),
        ("lic_c", "Bolt", Quota(total=120_000)),
    ):
        made[name] = License(
            id=name,
            customer=customer,
            models=("*",),
            explainers=("*",),
            issued_at=BEGIN,
            not_before=BEGIN,
            expires=BEGIN + timedelta(days=365),
            quota=quota,
        )
    return made


def requests(count: int, chance: random.Random) -> Iterator[tuple[str, int, int, int, int | None, timedelta]]:
    """Yields license, number, images, price, hits and time of requests; a fifth of them are earlier ones again."""
    made: deque[tuple[str, int, int, int, int | None]] = deque(maxlen=2000)
    for number in range(count):
        if made and chance.random() < 0.2:
            yield (*chance.choice(made), SPAN * number / count)
            continue
        images = chance.choice((1, 1, 1, 2, 4, 8))
        hits = chance.randint(0, images) if chance.random() < 0.25 else None
        one = (chance.choice(("lic_a", "lic_a", "lic_b", "lic_c")), number, images, chance.choice((1, 1, 2, 5)), hits)
        made.append(one)
        yield (*one, SPAN * number / count)


def run(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Charges everything, and compares."""
    chance = random.Random(options.seed)
    grants, said, counts = licenses(), defaultdict[tuple[str, str], int](int), Counter[str]()
    with LicenseStore(url) as store:
        for license in grants.values():
            store.add(license, issuer="key")
        ledger = Ledger(store.database, record=record_charge)
        began = time.perf_counter()
        under_way: deque[Asked] = deque()
        for name, number, images, price, hits, after in requests(options.calls, chance):
            when = BEGIN + after
            order = ChargeRequest(
                license=grants[name],
                request_id=f"r{number}",
                request_digest=digest_of(b"%d" % number),
                model_digest=digest_of(b"model"),
                explainer="grad_cam",
                images=images,
                units=images * price,
                attempt=f"{after.total_seconds()}",
            )
            under_way.append(Asked(order, when, hits, ledger.reserve(order, now=when, lifetime_s=1e9)))
            if len(under_way) >= options.at_once:
                finish(ledger, [under_way.popleft() for _ in range(options.at_once // 2)], chance, said, counts)
        finish(ledger, list(under_way), chance, said, counts)
        ledger.close()
        seconds = time.perf_counter() - began
        return {
            "calls": options.calls,
            "seconds": round(seconds, 1),
            "outcomes": dict(sorted(counts.items())),
            **compare(store, {month: dict(units(said, month)) for month in MONTHS}, parse_prices(TOML, name="prices")),
        }


def finish(
    ledger: Ledger,
    asked: list[Asked],
    chance: random.Random,
    said: dict[tuple[str, str], int],
    counts: Counter[str],
) -> None:
    """Charges requests that have their reservations, or gives them up."""
    committed = []
    for one in asked:
        try:
            reservation = one.reserved.result(60)
        except QuotaError:
            counts["refused for the quota"] += 1
            continue
        if chance.random() < 0.1:
            counts["given up"] += ledger.release(one.order).result(60)
            continue
        committed.append((one, ledger.commit(reservation, charge_of(one))))
    for one, future in committed:
        result = future.result(60)
        counts["repeated" if result.repeated else "charged"] += 1
        if not result.repeated:
            counts["charged with a condition"] += one.hits is not None
            counts["charged beyond the quota"] += result.overage > 0
            said[f"{result.charge.time:%Y-%m}", one.order.license.id] += result.charge.units


def charge_of(asked: Asked) -> Charge:
    """What a server charges for a request."""
    order = asked.order
    maps = tuple(ONE if asked.hits is None or place < asked.hits else None for place in range(order.images))
    return Charge(
        license_id=order.license.id,
        request_id=order.request_id,
        request_digest=order.request_digest,
        model_digest=order.model_digest,
        model_name="m",
        explainer=order.explainer,
        parameters={},
        target=-1,
        units=order.units,
        keyed=True,
        time=asked.when.replace(microsecond=0),
        image_digests=(ONE,) * order.images,
        answer=AnswerDigests(
            maps=maps, scalings=(None,) * order.images, predictions=(ONE,) * order.images, targets=maps
        ),
        explain_if=None if asked.hits is None else Condition("probability_below", below=0.8),
    )


def units(said: dict[tuple[str, str], int], month: str) -> Iterator[tuple[str, int]]:
    """Yields what was counted for each license in a month, where it was anything."""
    return ((name, number) for (of, name), number in sorted(said.items()) if of == month and number)


def compare(store: LicenseStore, counted: dict[str, dict[str, int]], prices: Prices) -> dict[str, Any]:
    """Holds the counts of the callers, ledger, counters, log, invoices and their CSV against each other."""
    months: dict[str, Any] = {}
    with store.database.transaction(snapshot=True) as connection:
        differences = len(reconcile(connection).differences) + len(compare_with_ledger(connection))
        logged = list(logged_charges(connection))
        for month in MONTHS:
            since, until = month_named(month)
            lines = list(charged(connection, since=since, until=until))
            check_against_log(lines, logged, since=since, until=until)
            began = time.perf_counter()
            invoices = make_invoices(lines, prices, month=since)
            made_s = time.perf_counter() - began
            by_source = {
                "callers": counted[month],
                "ledger": _sum((line.license_id, line.units) for line in lines),
                "log": _sum((one.license_id, one.units) for one in logged if since <= one.time < until),
                "invoices": _sum((item.license_id, item.units) for one in invoices for item in one.items),
                "csv": _sum((row["license_id"], int(row["units"])) for one in invoices for row in csv_rows(one)),
            }
            differences += sum(one != by_source["callers"] for one in by_source.values())
            owed = amounts(lines, prices)
            differences += sum(owed[one.customer] != Fraction(one.total) for one in invoices)
            months[month] = {
                "units": by_source["invoices"],
                "overage": sum(one.overage for one in invoices),
                "invoices": {one.customer: _told(one) for one in invoices},
                "invoices_made_in_s": round(made_s, 3),
            }
    return {"differences": differences, "months": months}


def amounts(lines: list[Any], prices: Prices) -> dict[str, Fraction]:
    """Computes what each customer owes a second time, one unit after the other, as fractions of the currency."""
    numbers, owed = Counter[str](), defaultdict[str, defaultdict[Any, Fraction]](lambda: defaultdict(Fraction))
    for line in lines:
        held = max((one for one in prices.lists if one.begins <= line.charged_at), key=lambda one: one.begins)
        ends = [one.up_to or 10**18 for one in held.tiers]
        costs = [Fraction(one.unit) for one in held.tiers]
        for place in range(line.units):
            numbers[line.customer] += 1
            tier = next(t for t, end in enumerate(ends) if numbers[line.customer] <= end)
            beyond = place >= line.units - line.overage
            cost = Fraction(held.overage) if beyond and held.overage is not None else costs[tier]
            owed[line.customer][line.license_id, held.begins, tier, beyond] += cost
    return {name: sum((_rounded(one) for one in items.values()), Fraction()) for name, items in owed.items()}


def _rounded(amount: Fraction) -> Fraction:
    return Fraction((amount * 200 + 1) // 2, 100)


def _sum(pairs: Any) -> dict[str, int]:  # noqa: ANN401 - of names and numbers
    found = Counter[str]()
    for name, number in pairs:
        found[name] += number
    return {name: number for name, number in sorted(found.items()) if number}


def _told(invoice: Invoice) -> dict[str, Any]:
    return {
        "requests": invoice.requests,
        "units": invoice.units,
        "overage": invoice.overage,
        "items": len(invoice.items),
        "total": f"{invoice.total:f} {invoice.currency}",
    }


def main() -> None:
    """Measures and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="?", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--at-once", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.database == "postgresql":
        with postgresql() as url:
            found = run(url, options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = run(f"sqlite:///{Path(folder) / 'store.db'}", options)
    record(f"invoices_{options.database}", {"database": options.database, "seed": options.seed, **found})
    if found["differences"]:
        raise SystemExit(json.dumps(found["differences"]))


if __name__ == "__main__":
    main()
