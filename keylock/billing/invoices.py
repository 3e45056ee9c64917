"""What a customer owes for a month, unit by unit as the ledger has charged it.

- A charge belongs to the month in which it was made (`charged_at`, UTC), and costs what the list says that held then.
  Units are those that were charged, whatever explainers cost by now.
- Units are numbered through the month in the order in which they were charged, over all licenses of the customer. The
  number says which tier a unit is in, also where another list began within the month: tiers go on counting.
- Of a charge that is partly beyond a quota the last units are the overage. They cost what the list has for overage, in
  the tier that they are in otherwise.
- Units of one license, list, tier and kind are one item. Its amount is their number times the price, rounded once; the
  total is the sum of the items.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, NamedTuple

from keylock.billing.price_lists import PriceList, Prices, exactly
from keylock.errors import AuditLogError, InputError
from keylock.licensing.charges import Charge
from keylock.store.usage import Line

__all__ = ["Invoice", "Item", "check_against_log", "csv_rows", "make_invoices", "month_named"]

_MONTHS: Final = 12
CSV_HEADER: Final = (
    "month", "customer", "billing_id", "license_id", "prices_from", "first_unit", "last_unit", "overage", "requests",
    "units", "unit_price", "amount", "currency",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Item:
    """Units of one license that cost the same.

    Attributes:
        license_id: The license.
        billing_id: What billing systems call its customer.
        prices_from: When the list began that holds for them.
        first_unit: Which units of the month the tier is for, from this one, counted from 1.
        last_unit: To this one; None where it has no end.
        overage: Whether they are beyond the quota.
        requests: Charges of which units are in here; one that is in several items counts in each.
        units: How many.
        unit_price: What one costs.
        amount: What they cost, rounded.
    """

    license_id: str
    billing_id: str
    prices_from: datetime
    first_unit: int
    last_unit: int | None
    overage: bool
    requests: int
    units: int
    unit_price: Decimal
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Invoice:
    """What a customer owes for a month.

    Attributes:
        month: Its first moment (UTC).
        customer: Whose it is.
        currency: Three letters.
        items: What was used, by license, list and tier.
        requests: Charges in the month, those of no units among them.
        images: Images of them.
    """

    month: datetime
    customer: str
    currency: str
    items: tuple[Item, ...]
    requests: int
    images: int

    @property
    def units(self) -> int:
        """Units that were charged."""
        return sum(item.units for item in self.items)

    @property
    def overage(self) -> int:
        """Units of them that were beyond a quota."""
        return sum(item.units for item in self.items if item.overage)

    @property
    def total(self) -> Decimal:
        """What is owed: the sum of the amounts."""
        with exactly():
            return sum((item.amount for item in self.items), Decimal(0))


class _Kind(NamedTuple):
    """What units have to have in common to be one item, in the order of the items."""

    license_id: str
    billing_id: str
    begins: datetime
    first: int
    last: int | None
    overage: bool
    unit: Decimal


def month_named(text: str) -> tuple[datetime, datetime]:
    """Returns the first moment of a month, and that of the next one (UTC).

    Args:
        text: The month, `2026-11`.

    Raises:
        InputError: If it names none.
    """
    try:
        begins = datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)
        ends = begins.replace(year=begins.year + begins.month // _MONTHS, month=begins.month % _MONTHS + 1)
    except ValueError:
        raise InputError(f"{text!r} is no month: write it as 2026-11") from None
    return begins, ends


def make_invoices(lines: Iterable[Line], prices: Prices, *, month: datetime) -> list[Invoice]:
    """Makes the invoices of a month.

    Args:
        lines: What was charged in it, in the order in which it was, as `keylock.store.usage.charged` gives it.
        prices: What units cost.
        month: Its first moment (UTC).

    Returns:
        One invoice for each customer, by name.

    Raises:
        InputError: If there are no prices for a charge.
    """
    by_customer: dict[str, list[Line]] = {}
    for line in lines:
        by_customer.setdefault(line.customer, []).append(line)
    return [_invoice(name, by_customer[name], prices, month) for name in sorted(by_customer)]


def _invoice(customer: str, lines: list[Line], prices: Prices, month: datetime) -> Invoice:
    found: dict[_Kind, list[int]] = {}
    counted = 0
    for line in lines:
        held = prices.at(line.charged_at)
        for overage, units in ((False, line.units - line.overage), (True, line.overage)):
            for kind, some in _kinds(line, held, first=counted + 1, units=units, overage=overage):
                entry = found.setdefault(kind, [0, 0])
                entry[0] += 1
                entry[1] += some
            counted += units
    items = tuple(
        Item(
            license_id=kind.license_id,
            billing_id=kind.billing_id,
            prices_from=kind.begins,
            first_unit=kind.first,
            last_unit=kind.last,
            overage=kind.overage,
            requests=requests,
            units=units,
            unit_price=kind.unit,
            amount=prices.amount(units, kind.unit),
        )
        for kind, (requests, units) in sorted(found.items(), key=lambda one: one[0][:4] + one[0][5:6])
    )
    return Invoice(
        month=month,
        customer=customer,
        currency=prices.currency,
        items=items,
        requests=len(lines),
        images=sum(line.images for line in lines),
    )


def _kinds(line: Line, held: PriceList, *, first: int, units: int, overage: bool) -> Iterator[tuple[_Kind, int]]:
    """Splits units of a charge by what they cost."""
    starts = [1, *(tier.up_to + 1 for tier in held.tiers if tier.up_to is not None)]
    begin_of = dict(zip(held.tiers, starts, strict=True))
    for tier, some in held.split(first, units):
        unit = held.overage if overage and held.overage is not None else tier.unit
        yield _Kind(line.license_id, line.billing_id, held.begins, begin_of[tier], tier.up_to, overage, unit), some


def check_against_log(lines: Iterable[Line], charges: Iterable[Charge], *, since: datetime, until: datetime) -> None:
    """Returns when the audit log has the same units for every license in a time as the ledger has.

    Args:
        lines: What the ledger has charged in it.
        charges: Everything that the log has, repeats left out.
        since: When it begins.
        until: When it is over.

    Raises:
        AuditLogError: If it has not.
    """
    ledger, log = dict[str, int](), dict[str, int]()
    for line in lines:
        ledger[line.license_id] = ledger.get(line.license_id, 0) + line.units
    for charge in charges:
        # Disclosures are counted apart, and cost nothing.
        if since <= charge.time < until and charge.disclosure is None:
            log[charge.license_id] = log.get(charge.license_id, 0) + charge.units
    if ledger != log:
        name = min(name for name in {*ledger, *log} if ledger.get(name) != log.get(name))
        raise AuditLogError(
            f"no invoice is made, because the books do not agree: in the month the ledger has {ledger.get(name, 0)} "
            f"units of the license {name} and the audit log {log.get(name, 0)}; see keylock usage reconcile"
        )


def csv_rows(invoice: Invoice) -> list[Mapping[str, str]]:
    """Returns the items of an invoice as rows of CSV, under the names of `CSV_HEADER`."""
    return [
        {
            "month": f"{invoice.month:%Y-%m}",
            "customer": invoice.customer,
            "billing_id": item.billing_id,
            "license_id": item.license_id,
            "prices_from": item.prices_from.isoformat(),
            "first_unit": str(item.first_unit),
            "last_unit": "" if item.last_unit is None else str(item.last_unit),
            "overage": "yes" if item.overage else "no",
            "requests": str(item.requests),
            "units": str(item.units),
            "unit_price": f"{item.unit_price:f}",
            "amount": f"{item.amount:f}",
            "currency": invoice.currency,
        }
        for item in invoice.items
    ]
