"""The audit log in the database of the ledger: an entry is appended by the transaction that charges for it.

So whatever happens to a server, a charge and its entry are both there or neither is, and several servers write one log.
The place of an entry is given in that transaction: the row of the head is locked, the tree's frontier is moved on, and
both are written with the entry. Entries are never changed or deleted. Needs the `server` extra.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, insert, select

from keylock.errors import AuditLogError
from keylock.store.raw_sql import Statement
from keylock.store.schema import AUDIT_CHECKPOINTS, AUDIT_LOG
from keylock.transparency.checkpoints import Checkpoint
from keylock.transparency.merkle import Frontier, Tree, leaf_hash
from keylock.transparency.proofs import ConsistencyProof, InclusionProof

__all__ = [
    "MAX_ENTRY_BYTES",
    "append",
    "append_new",
    "entries",
    "find",
    "find_leaf",
    "grow",
    "head",
    "latest_checkpoint",
    "prove_consistency",
    "prove_inclusion",
    "sign_checkpoint",
    "verify",
]

# A request of 4,096 images has 20,480 digests.
MAX_ENTRY_BYTES: Final = 2 * 1024 * 1024

_PAGE: Final = 10_000

_LOG: Final = AUDIT_LOG.c
_CHECKPOINTS: Final = AUDIT_CHECKPOINTS.c

# What every charge runs.
_HEAD: Final = Statement("SELECT origin, size, frontier FROM audit_head WHERE id = 1")
_LOCKED_HEAD: Final = Statement("SELECT origin, size, frontier FROM audit_head WHERE id = 1 FOR UPDATE")
_LAST: Final = Statement("SELECT seq FROM audit_log ORDER BY seq DESC LIMIT 1")
_APPEND: Final = Statement("INSERT INTO audit_log (seq, leaf_hash, entry) VALUES (:seq, :leaf_hash, :entry)")
_MOVE: Final = Statement("UPDATE audit_head SET size = :size, frontier = :frontier WHERE id = 1")


@dataclass(frozen=True)
class Verified:
    """What a whole verification of the log found to be good.

    Attributes:
        checkpoint: The state of the log, unsigned.
        checkpoints: How many signed checkpoints it was compared with.
    """

    checkpoint: Checkpoint
    checkpoints: int


def append(connection: Connection, new: Sequence[bytes]) -> range:
    """Appends entries, in order, inside of the transaction that charges for them.

    On PostgreSQL the head's row is locked until that transaction ends; on SQLite the transaction must have begun
    as one that writes. Call it last, so that the lock is held for as short as can be.

    Args:
        connection: With an open transaction.
        new: The entries.

    Returns:
        Their places in the log.

    Raises:
        AuditLogError: If an entry is too long, or there is no log, or its end is not where its head says.
    """
    if not new:
        return range(0)
    if any(len(entry) > MAX_ENTRY_BYTES for entry in new):
        raise AuditLogError(f"an entry of the audit log has more than {MAX_ENTRY_BYTES} bytes")
    frontier = _frontier(connection, lock=True)[1]
    first = frontier.size
    # After the lock, so that on PostgreSQL it is of the same moment as the head. A log that was cut must not grow.
    last = _LAST.row(connection, {})
    if (-1 if last is None else last[0]) != first - 1:
        raise AuditLogError(
            f"the audit log was cut or changed: its head says {first} entries and its last one has another number: see "
            "keylock audit-log verify"
        )
    rows = []
    for entry in new:
        leaf = leaf_hash(entry)
        rows.append({"seq": frontier.size, "leaf_hash": leaf, "entry": entry})
        frontier.append(leaf)
    _APPEND.change_all(connection, rows)
    _MOVE.change(connection, {"size": frontier.size, "frontier": frontier.state})
    return range(first, frontier.size)


def append_new(connection: Connection, entries: Sequence[bytes]) -> range:
    """Appends those of some entries that are not in the log yet, each once, and returns their places; as `append`."""
    # Locked first, so that no other server appends one of them between the look and the write.
    _frontier(connection, lock=True)
    found = dict.fromkeys(entries)
    return append(connection, [one for one in found if find_leaf(connection, leaf_hash(one)) is None])


def head(connection: Connection) -> Checkpoint:
    """Returns the state of the log, unsigned.

    Raises:
        AuditLogError: If there is no log, or its head was changed by hand.
    """
    origin, frontier = _frontier(connection, lock=False)
    return Checkpoint(origin, frontier.size, frontier.root())


def entries(connection: Connection, *, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yields the entries with their places, in order, a page at a time.

    Args:
        connection: To the database.
        start: The first place.
    """
    for seq, _, entry in _rows(connection, start=start):
        yield seq, entry


def find(connection: Connection, entry: bytes) -> int:
    """Returns the place of an entry.

    Raises:
        AuditLogError: If it is not in the log.
    """
    found = find_leaf(connection, leaf_hash(entry))
    if found is None:
        raise AuditLogError("this receipt is not in the audit log: it belongs to another log, or the log was changed")
    return found[0]


def find_leaf(connection: Connection, leaf: bytes) -> tuple[int, bytes] | None:
    """Returns place and content of the first entry with a hash, or None where there is none.

    Args:
        connection: To the database.
        leaf: Hash of the entry as a leaf, 32 bytes.
    """
    query = select(_LOG.seq, _LOG.entry).where(_LOG.leaf_hash == leaf).order_by(_LOG.seq).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else (int(row.seq), bytes(row.entry))


def grow(connection: Connection, tree: Tree, size: int) -> None:
    """Appends the entries to a tree that it does not have yet, up to a size.

    Args:
        connection: To the database.
        tree: What was read before.
        size: Entries it shall have, at least.

    Raises:
        AuditLogError: If there are less: the log was cut.
    """
    while tree.size < size:
        query = select(_LOG.seq, _LOG.leaf_hash).where(_LOG.seq >= tree.size).order_by(_LOG.seq).limit(_PAGE)
        page = connection.execute(query).all()
        for row in page:
            if row.seq != tree.size:
                break
            tree.append(bytes(row.leaf_hash))
        if not page or page[-1].seq != tree.size - 1:
            raise AuditLogError(f"the audit log was cut: entry {tree.size} is missing")


def sign_checkpoint(
    connection: Connection,
    sign: Callable[[Checkpoint], str],
    *,
    at: datetime,
    good: Callable[[str], bool] = lambda _note: True,
) -> str:
    """Signs the state of the log and keeps the checkpoint, where that state was not signed before.

    Args:
        connection: With an open transaction that may write.
        sign: Returns a checkpoint as a signed note.
        at: The time, with its zone.
        good: Tells whether a checkpoint that was signed before is as good as a new one.

    Returns:
        The signed note.

    Raises:
        AuditLogError: If there is no log.
    """
    state = head(connection)
    latest = latest_checkpoint(connection)
    if latest is not None:
        signed = Checkpoint.parse_unverified(latest)
        if (signed.size, signed.root) == (state.size, state.root) and good(latest):
            return latest
    note = sign(state)
    moment = int(at.astimezone(UTC).timestamp())
    connection.execute(insert(AUDIT_CHECKPOINTS).values(size=state.size, signed_at=moment, note=note))
    return note


def latest_checkpoint(connection: Connection) -> str | None:
    """Returns the checkpoint signed last, or None where none was."""
    query = select(_CHECKPOINTS.note).order_by(_CHECKPOINTS.number.desc()).limit(1)
    return connection.execute(query).scalar_one_or_none()


def prove_inclusion(connection: Connection, entry: bytes, *, checkpoint: str) -> InclusionProof:
    """Returns the proof that an entry is in the log that a checkpoint signs. Reads the hash of every entry.

    Args:
        connection: To the database.
        entry: The entry.
        checkpoint: A signed checkpoint of this log.

    Raises:
        AuditLogError: If the entry is not in it.
    """
    index, size = find(connection, entry), Checkpoint.parse_unverified(checkpoint).size
    if index >= size:
        raise AuditLogError(f"entry {index} is newer than the checkpoint of {size} entries: sign a new checkpoint")
    proof = _tree_of(connection, size).inclusion_proof(index, size=size)
    return InclusionProof(index, tuple(proof), checkpoint)


def prove_consistency(connection: Connection, old_size: int, *, checkpoint: str) -> ConsistencyProof:
    """Returns the proof that the log that a checkpoint signs goes on from an earlier state.

    Args:
        connection: To the database.
        old_size: Entries of the earlier state.
        checkpoint: A signed checkpoint of this log.

    Raises:
        AuditLogError: If the earlier state is larger than the later one.
    """
    size = Checkpoint.parse_unverified(checkpoint).size
    proof = _tree_of(connection, size).consistency_proof(old_size, size=size)
    return ConsistencyProof(old_size, tuple(proof), checkpoint)


def verify(
    connection: Connection,
    *,
    open_checkpoint: Callable[[str], Checkpoint],
    check_entry: Callable[[bytes], object] = lambda _entry: None,
    known: Sequence[str] = (),
) -> Verified:
    """Verifies the whole log in one pass and names the first thing that is wrong.

    1. Entries are numbered without a gap, and each has the hash of its content.
    2. Every entry can be read.
    3. The head names as many entries as there are, and their tree.
    4. Every signed checkpoint, those kept here and those brought along, is to be trusted, is of this log and has the
       root hash of the entries before it.

    Args:
        connection: To the database.
        open_checkpoint: Returns the checkpoint in a signed note, and raises where it is not to be trusted.
        check_entry: Raises where the content of an entry is none.
        known: Signed checkpoints that were kept elsewhere.

    Raises:
        AuditLogError: If anything is wrong.
    """
    origin, stored = _frontier(connection, lock=False)
    kept = [*connection.execute(select(_CHECKPOINTS.note).order_by(_CHECKPOINTS.number)).scalars(), *known]
    signed: dict[int, list[Checkpoint]] = {}
    for note in kept:
        checkpoint = open_checkpoint(note)
        if checkpoint.origin != origin:
            raise AuditLogError(f"a checkpoint is of the log {checkpoint.origin}, and this is {origin}")
        signed.setdefault(checkpoint.size, []).append(checkpoint)
    frontier = Frontier()
    _compare(signed.get(0, ()), frontier)
    for seq, leaf, entry in _rows(connection):
        if seq != frontier.size:
            raise AuditLogError(f"the audit log was cut: entry {frontier.size} is missing")
        if leaf != leaf_hash(entry):
            raise AuditLogError(f"the audit log was changed: entry {seq} is not what was appended")
        try:
            check_entry(entry)
        except AuditLogError as error:
            raise AuditLogError(f"entry {seq} of the audit log cannot be read: {error}") from None
        frontier.append(leaf)
        _compare(signed.get(frontier.size, ()), frontier)
    if frontier.size < stored.size:
        raise AuditLogError(f"the audit log was cut: it had {stored.size} entries and has {frontier.size}")
    if (frontier.size, frontier.state) != (stored.size, stored.state):
        raise AuditLogError("the audit log was changed: its head is not that of its entries")
    beyond = [size for size in signed if size > frontier.size]
    if beyond:
        raise AuditLogError(
            f"the audit log was cut: a checkpoint signs {max(beyond)} entries, {frontier.size} are left"
        )
    return Verified(Checkpoint(origin, frontier.size, frontier.root()), len(kept))


def _compare(signed: Collection[Checkpoint], frontier: Frontier) -> None:
    for checkpoint in signed:
        if checkpoint.root != frontier.root():
            raise AuditLogError(
                f"the audit log was rewritten: its first {frontier.size} entries are not those that a checkpoint signs"
            )


def _frontier(connection: Connection, *, lock: bool) -> tuple[str, Frontier]:
    # SQLite has no locks of rows: a transaction that writes is the only one.
    statement = _LOCKED_HEAD if lock and connection.dialect.name != "sqlite" else _HEAD
    row = statement.row(connection, {})
    if row is None:
        raise AuditLogError("there is no audit log in this store: migrate it with keylock store migrate")
    origin, size, state = row
    return origin, Frontier(size, state)


def _tree_of(connection: Connection, size: int) -> Tree:
    tree = Tree()
    grow(connection, tree, size)
    return tree


def _rows(connection: Connection, *, start: int = 0) -> Iterator[tuple[int, bytes, bytes]]:
    while True:
        query = select(AUDIT_LOG).where(_LOG.seq >= start).order_by(_LOG.seq).limit(_PAGE)
        page = connection.execute(query).all()
        for row in page:
            yield row.seq, bytes(row.leaf_hash), bytes(row.entry)
        if len(page) < _PAGE:
            return
        start = page[-1].seq + 1
