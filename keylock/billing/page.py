"""An invoice as one HTML page that needs nothing beside itself, to be read, printed and kept."""

from decimal import Decimal

from keylock.billing.invoices import Invoice, Item
from keylock.reports import Card, Cell, Table, render_page

__all__ = ["render_invoice"]


def render_invoice(invoice: Invoice, *, seller: str = "") -> str:
    """Returns the page.

    Args:
        invoice: What is owed.
        seller: Who is owed it; left out where it is empty.
    """
    return render_page(
        "keylock.billing",
        "invoice.html",
        invoice=invoice,
        month=f"{invoice.month:%B %Y}",
        parties=[("from", seller), ("to", invoice.customer), *_billing_ids(invoice)],
        cards=[
            Card(_money(invoice.total, invoice.currency), "to pay, without tax"),
            Card(f"{invoice.units:,}", "units"),
            Card(f"{invoice.requests:,}", f"requests, of {invoice.images:,} images"),
        ],
        items=_table(invoice),
        total=_money(invoice.total, invoice.currency),
        overage=f"{invoice.overage:,}" if invoice.overage else "",
    )


def _billing_ids(invoice: Invoice) -> list[tuple[str, str]]:
    found = sorted({item.billing_id for item in invoice.items} - {invoice.customer})
    return [("billing id", ", ".join(found))] if found else []


def _table(invoice: Invoice) -> Table:
    rows = [
        (
            Cell(item.license_id, f"prices from {item.prices_from:%Y-%m-%d}"),
            Cell(_tier(item), "beyond the quota" if item.overage else "", "words"),
            Cell(f"{item.requests:,}"),
            Cell(f"{item.units:,}"),
            Cell(f"{item.unit_price:f}"),
            Cell(f"{item.amount:,f}"),
        )
        for item in invoice.items
    ]
    header = ("license", "units of the month", "requests", "units", "a unit", f"amount in {invoice.currency}")
    return Table("items", header, tuple(rows), "items")


def _tier(item: Item) -> str:
    if item.last_unit is None:
        return f"{item.first_unit:,} and on" if item.first_unit > 1 else "all"
    return f"{item.first_unit:,} to {item.last_unit:,}"


def _money(amount: Decimal, currency: str) -> str:
    return f"{amount:,f} {currency}"
