"""Where the ledger and the audit log meet: every charge is an entry, and every entry is a charge."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from sqlalchemy import Connection, text

from keylock.errors import AuditLogError
from keylock.licensing.charges import Charge
from keylock.licensing.receipts import Receipt, parse_entry
from keylock.store import log_table
from keylock.store.group_commit import defer
from keylock.transparency import leaf_hash

__all__ = ["AuditDifference", "compare_with_ledger", "compare_with_receipts", "logged_charges", "record_charge"]


def record_charge(connection: Connection, charge: Charge, entry: bytes) -> None:
    """Appends a charge to the audit log, in the transaction that makes it; pass it to `Ledger` as `record`.

    Another answer to a request that was charged is an entry too, and each of them one entry however often it is given.
    """
    defer(connection, log_table.append if charge.repeats is None else log_table.append_new, entry)


@dataclass(frozen=True, slots=True)
class AuditDifference:
    """A request that ledger and log state differently.

    Attributes:
        license_id: The license.
        request_id: The request.
        what: What is different, in words.
    """

    license_id: str
    request_id: str
    what: str


def logged_charges(connection: Connection) -> Iterator[Charge]:
    """Yields what the audit log says was charged, in its order, without further answers to a request.

    Raises:
        AuditLogError: If an entry cannot be read.
    """
    for seq, entry in log_table.entries(connection):
        try:
            charge = parse_entry(entry)
        except AuditLogError as error:
            raise AuditLogError(f"entry {seq} of the audit log cannot be read: {error}") from None
        if charge.repeats is None:
            yield charge


def compare_with_ledger(connection: Connection) -> tuple[AuditDifference, ...]:
    """Compares every charge of the ledger with its entry in the log, and every entry with its charge.

    Further answers to a request, which cost nothing, are compared with the charge that they repeat.

    Args:
        connection: A connection inside a transaction that sees one moment (`Database.transaction(snapshot=True)`).

    Returns:
        What does not agree, empty where all does; requests are sorted.

    Raises:
        AuditLogError: If an entry cannot be read.
    """
    found: dict[tuple[str, str], Charge] = {}
    repeats: set[bytes] = set()
    differences = []
    for seq, entry in log_table.entries(connection):
        try:
            charge = parse_entry(entry)
        except AuditLogError as error:
            raise AuditLogError(f"entry {seq} of the audit log cannot be read: {error}") from None
        key = (charge.license_id, charge.request_id)
        if charge.repeats is not None:
            if not _is_answer_to(charge, found.get(key)):
                differences.append(AuditDifference(*key, f"entry {seq} of the log repeats what was never charged"))
            if entry in repeats:
                differences.append(AuditDifference(*key, f"entry {seq} of the log states an answer a second time"))
            repeats.add(entry)
            continue
        if key in found:
            differences.append(AuditDifference(*key, f"entry {seq} of the log charges it a second time"))
        found[key] = charge
    query = """
        SELECT license_id, request_id, request_digest, model_digest, explainer, units, charged_at, answer_digest
        FROM ledger WHERE charged_at IS NOT NULL
    """
    for row in connection.execute(text(query)):
        key = (row.license_id, row.request_id)
        logged = found.pop(key, None)
        if logged is None:
            differences.append(AuditDifference(*key, "it is charged and not in the log"))
            continue
        entered = (
            logged.request_digest,
            logged.model_digest,
            logged.explainer,
            logged.units,
            int(logged.time.timestamp()),
            logged.answer.digest(),
        )
        if entered != tuple(row)[2:]:
            differences.append(AuditDifference(*key, "the log says something else about it than the ledger"))
    differences += [AuditDifference(*key, "it is in the log and not charged") for key in found]
    return tuple(sorted(differences, key=lambda one: (one.license_id, one.request_id, one.what)))


def _is_answer_to(repeat: Charge, charged: Charge | None) -> bool:
    """Tells whether an entry is another answer to a request that an earlier entry charges."""
    return (
        charged is not None
        and replace(repeat, answer=charged.answer, repeats=None) == charged
        and (repeat.repeats == charged.answer.digest() != repeat.answer.digest())
    )


def compare_with_receipts(connection: Connection, receipts: Iterable[Receipt]) -> tuple[AuditDifference, ...]:
    """Finds the receipts whose charges are not in the log: the store was put back from a backup that is older.

    Args:
        connection: A connection inside a transaction.
        receipts: Receipts that were verified.

    Returns:
        What is missing, one for each charge; requests are sorted.
    """
    missing = {
        AuditDifference(
            one.charge.license_id,
            one.charge.request_id,
            f"a receipt of {one.charge.time:%Y-%m-%d %H:%M:%S} UTC says that {one.charge.units} units were charged, "
            "and the log does not have it",
        )
        for one in receipts
        if log_table.find_leaf(connection, leaf_hash(one.entry)) is None
    }
    return tuple(sorted(missing, key=lambda one: (one.license_id, one.request_id, one.what)))
