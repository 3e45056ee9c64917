"""Whether the books agree: what the ledger says request by request, and what the counters say in sum."""

from dataclasses import dataclass

from sqlalchemy import Connection, text

from keylock.store.periods import PERIODS

__all__ = ["Difference", "Reconciliation", "reconcile"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A sum that two books state differently.

    Attributes:
        license_id: Of which license.
        period: `day`, `month` or `total`.
        start: Days or months since 1970; 0 for the total.
        ledger: Units by the ledger.
        counter: Units by the counter.
    """

    license_id: str
    period: str
    start: int
    ledger: int
    counter: int


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What a comparison found.

    Attributes:
        requests: Requests that are charged.
        units: Units that are charged.
        reserved: Units that are reserved for requests that run.
        differences: What does not agree; empty where all does.
    """

    requests: int
    units: int
    reserved: int
    differences: tuple[Difference, ...]


def reconcile(connection: Connection) -> Reconciliation:
    """Adds up the ledger and compares it with every counter.

    Args:
        connection: A connection inside a transaction that sees one moment (`Database.transaction(snapshot=True)`).
    """
    sums: dict[tuple[str, str, int], int] = {}
    for period in PERIODS:
        start = "0" if period == "total" else period
        query = f"SELECT license_id, {start} AS start, sum(units) AS units FROM ledger GROUP BY 1, 2"  # noqa: S608
        for row in connection.execute(text(query)):
            sums[row.license_id, period, row.start] = int(row.units)
    counters: dict[tuple[str, str, int], int] = {
        (row.license_id, row.period, row.start): row.used
        for row in connection.execute(text("SELECT license_id, period, start, used FROM counters"))
    }
    differences = [
        Difference(key[0], key[1], key[2], sums.get(key, 0), counters.get(key, 0))
        for key in sorted(sums.keys() | counters.keys())
        if sums.get(key, 0) != counters.get(key, 0)
    ]
    totals = connection.execute(
        text(
            """
            SELECT count(charged_at) AS requests,
                   coalesce(sum(CASE WHEN charged_at IS NULL THEN 0 ELSE units END), 0) AS units,
                   coalesce(sum(CASE WHEN charged_at IS NULL THEN units ELSE 0 END), 0) AS reserved
            FROM ledger
            """
        )
    ).one()
    return Reconciliation(totals.requests, int(totals.units), int(totals.reserved), tuple(differences))
