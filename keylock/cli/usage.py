"""`keylock usage`: what licenses used, for the vendor and for billing systems, and whether the books agree."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from keylock.cli._console import JsonOption, new_app, note, print_json, print_pairs, print_table
from keylock.cli._home import DEFAULT_HOME, HomeOption, IssuerOption
from keylock.cli._receipts import find_trust, read_small_text
from keylock.cli._store import StoreOption, open_store
from keylock.cli._terms import period_of
from keylock.files.atomic import PRIVATE, write_file

if TYPE_CHECKING:
    from keylock.billing import Invoice
    from keylock.errors import InputError

__all__ = ["app"]

app = new_app("Show and export what licenses used, and check the books.")

EXIT_DIFFERENT: Final = 5

SinceOption = Annotated[str | None, typer.Option(metavar="DATE", help="Start of the period.")]
UntilOption = Annotated[str | None, typer.Option(metavar="DATE", help="End of the period (exclusive).")]
LicenseOption = Annotated[str | None, typer.Option("--license", metavar="ID", help="Only this license.")]
CustomerOption = Annotated[str | None, typer.Option(metavar="NAME", help="Only this customer.")]


@app.command("show")
def usage_show(
    license_id: Annotated[str | None, typer.Argument(metavar="ID", help="One license; all without it.")] = None,
    store: StoreOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show what licenses have used today, this month (UTC) and altogether, and what they may; disclosures apart."""
    from keylock.store.counters import look_up
    from keylock.store.ledger import disclosures

    now = datetime.now(UTC)
    with open_store(store, home) as licenses:
        wanted = licenses.list() if license_id is None else (licenses.get(license_id),)
        with licenses.database.transaction(snapshot=True) as connection:
            found = [
                (
                    one.license,
                    look_up(connection, one.license, now),
                    None if one.license.disclosure is None else disclosures(connection, one.license.id, now=now),
                )
                for one in wanted
            ]
    if as_json:
        print_json(
            [
                {
                    "license": license.id,
                    "customer": license.customer,
                    "quotas": list(windows),
                    "disclosures": None
                    if made is None
                    else {"today": made[0], "total": made[1], "terms": license.disclosure},
                }
                for license, windows, made in found
            ]
        )
        return
    titles = ["id", "customer", "today", "this month", "total"]
    rows = [
        [license.id, license.customer, *(_used(window.used, window.limit) for window in windows)]
        for license, windows, _ in found
    ]
    if any(made is not None for *_, made in found):
        titles += ["disclosures today", "disclosures"]
        for row, (license, _, made) in zip(rows, found, strict=True):
            terms = license.disclosure
            if made is None or terms is None:
                row += ["-", "-"]
            else:
                row += [_used(made[0], terms.per_day), _used(made[1], terms.total)]
    print_table(titles, rows)


def _used(used: int, limit: int | None) -> str:
    return f"{used}" if limit is None else f"{used} of {limit}"


@app.command("export")
def usage_export(
    form: Annotated[
        str, typer.Option("--format", metavar="csv|jsonl|cloudevents|lago|stripe", help="Format to write.")
    ] = "csv",
    since: SinceOption = None,
    until: UntilOption = None,
    license_id: LicenseOption = None,
    customer: CustomerOption = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to a new file instead of the screen.")] = None,
    store: StoreOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Export every request that was charged, one line each: CSV, JSON lines, or events for a billing system.

    cloudevents is what OpenMeter takes; lago and stripe are the bodies of their event calls. Every event has an id of
    its own, so that one which is sent twice is billed once.
    """
    from keylock.errors import InputError, UnknownNameError
    from keylock.store.usage import FORMATS, charged, render

    if form not in FORMATS:
        raise UnknownNameError("format", form, FORMATS)
    start, end = period_of(since, until)
    with open_store(store, home) as licenses, licenses.database.transaction(snapshot=True) as connection:
        # A misspelt name would be an empty bill.
        if license_id is not None:
            licenses.get(license_id)
        if customer is not None and not licenses.list(customer=customer):
            raise _unknown_customer(customer)
        lines = render(charged(connection, since=start, until=end, license_id=license_id, customer=customer), form)
        if out is None:
            for line in lines:
                typer.echo(line)
            return
        try:
            # What customers used is theirs.
            write_file(out, "".join(f"{line}\n" for line in lines), mode=PRIVATE, new=True)
        except FileExistsError:
            raise InputError(f"{out} exists and is not overwritten: choose another path") from None
    typer.echo(str(out))


@app.command("invoice")
def usage_invoice(
    month: Annotated[str, typer.Option("--month", metavar="YYYY-MM", help="The month, in UTC.")],
    prices: Annotated[
        Path | None, typer.Option("--prices", metavar="FILE", help="Price lists (TOML). [prices.toml of --home]")
    ] = None,
    customer: CustomerOption = None,
    seller: Annotated[str, typer.Option("--seller", metavar="NAME", help="Who sends the invoices.")] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write a page (.html) and items (.csv) for each customer here."),
    ] = None,
    store: StoreOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Make the invoices of a month: a page and a CSV for each customer, to the unit what the ledger has charged.

    The ledger is held against the audit log first; where they differ no invoice is made.
    """
    from dataclasses import asdict

    from keylock.billing.invoices import check_against_log, make_invoices, month_named
    from keylock.billing.price_lists import parse_prices
    from keylock.crypto.signing import Home
    from keylock.errors import InputError
    from keylock.store.logged_charges import logged_charges
    from keylock.store.usage import charged

    begins, ends = month_named(month)
    file = prices or Home(home.expanduser()).path / "prices.toml"
    if prices is None and not file.exists():
        raise InputError(f"there is no {file}: write down there what a unit costs, or name the file by --prices")
    lists = parse_prices(read_small_text(file, "price list"), name=str(file))
    with open_store(store, home) as licenses, licenses.database.transaction(snapshot=True) as connection:
        if customer is not None and not licenses.list(customer=customer):
            raise _unknown_customer(customer)
        lines = list(charged(connection, since=begins, until=ends))
        check_against_log(lines, logged_charges(connection), since=begins, until=ends)
    wanted = [line for line in lines if customer is None or line.customer == customer]
    invoices = make_invoices(wanted, lists, month=begins)
    files = [] if out is None else [_write_invoice(one, out, seller) for one in invoices]
    if as_json:
        print_json([{**asdict(one), "units": one.units, "total": one.total} for one in invoices])
    elif invoices:
        header = ("customer", "requests", "units", "overage", "amount", "currency")
        rows = [
            (one.customer, one.requests, one.units, one.overage, f"{one.total:f}", one.currency) for one in invoices
        ]
        print_table(header, rows)
    else:
        note(f"nothing was charged in {month}")
    for page, items in files:
        note(f"wrote {page} and {items.name}")


def _write_invoice(invoice: "Invoice", out: Path, seller: str) -> tuple[Path, Path]:
    """Writes the page and the items of an invoice; what customers used is theirs."""
    import csv
    import io

    from keylock.billing.invoices import CSV_HEADER, csv_rows
    from keylock.billing.page import render_invoice
    from keylock.errors import InputError
    from keylock.files.atomic import make_folders
    from keylock.store.usage import harmless

    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_HEADER, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: harmless(value) for name, value in row.items()} for row in csv_rows(invoice))
    stem = f"{_file_name(invoice.customer)}-{invoice.month:%Y-%m}"
    page, items = out / f"{stem}.html", out / f"{stem}.csv"
    try:
        make_folders(out, mode=PRIVATE)
        for path, content in ((page, render_invoice(invoice, seller=seller)), (items, text.getvalue())):
            write_file(path, content, mode=PRIVATE, new=True)
    except FileExistsError as error:
        raise InputError(f"{error.filename} exists and is not overwritten: name another directory by --out") from None
    return page, items


def _file_name(customer: str) -> str:
    """Returns a name for the files of a customer: letters and digits of its name, and a few of its digest."""
    import hashlib
    import re

    plain = re.sub(r"[^A-Za-z0-9]+", "-", customer).strip("-").lower()[:40]
    digest = hashlib.sha256(customer.encode()).hexdigest()[:6]
    return f"{plain}-{digest}" if plain else digest


def _unknown_customer(customer: str) -> "InputError":
    from keylock.errors import InputError

    return InputError(f"no license was issued to a customer {customer!r}: keylock license list shows the names")


@app.command("reconcile")
def usage_reconcile(
    receipts: Annotated[
        list[Path] | None,
        typer.Option("--receipt", metavar="FILE", help="Receipts that must be in the log too; may be repeated."),
    ] = None,
    issuer: IssuerOption = None,
    store: StoreOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Check that the books agree: ledger, counters and audit log. Exits with 5 where they do not.

    Receipts show what the books cannot: charges that were lost when a store was put back from a backup. A file may hold
    several, one a line.
    """
    from dataclasses import asdict

    from keylock.licensing.receipts import Receipt
    from keylock.store.logged_charges import compare_with_ledger, compare_with_receipts
    from keylock.store.reconcile import reconcile

    trusts = find_trust(issuer, home) if receipts else None
    held = [
        Receipt.verify(line, trusts)
        for path in receipts or ()
        for line in read_small_text(path, "receipt").split()
        if trusts is not None
    ]
    with open_store(store, home) as licenses, licenses.database.transaction(snapshot=True) as connection:
        found = reconcile(connection)
        unlogged = (*compare_with_ledger(connection), *compare_with_receipts(connection, held))
    if as_json:
        print_json({**asdict(found), "audit_log": list(unlogged)})
    else:
        pairs = [("requests", found.requests), ("units", found.units), ("reserved", found.reserved)]
        print_pairs([*pairs, ("differences", len(found.differences) + len(unlogged))])
        for one in found.differences:
            note(f"{one.license_id}, {one.period} {one.start}: ledger {one.ledger}, counter {one.counter}")
        for entry in unlogged:
            note(f"{entry.license_id}, request {entry.request_id!r}: {entry.what}")
    if found.differences or unlogged:
        raise typer.Exit(EXIT_DIFFERENT)
