"""The log in a database: appended to by transactions, and verified against every way to falsify it."""

import multiprocessing
from datetime import UTC, datetime

import pytest
from rfc6962 import mth
from sqlalchemy import text

from keylock.crypto.signing import SigningKey
from keylock.errors import AuditLogError
from keylock.store import Database, log_table
from keylock.transparency import Checkpoint, NoteKey
from keylock.transparency.merkle import Frontier, leaf_hash

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
KEY = SigningKey.generate()
ENTRIES = [f"entry {number}".encode() for number in range(37)]


def opened(note):
    """Trusts one key, under whatever name the log has."""
    origin = Checkpoint.parse_unverified(note).origin
    return Checkpoint.open(note, [NoteKey(origin, KEY.verifying_key)])


def sign(checkpoint):
    return checkpoint.sign(KEY)


@pytest.fixture
def database(tmp_path):
    with Database(f"sqlite:///{tmp_path / 'log.db'}") as database:
        yield database


@pytest.fixture
def filled(database):
    """A log of 37 entries with checkpoints after 10 and 37."""
    with database.transaction(writes=True) as connection:
        log_table.append(connection, ENTRIES[:10])
        log_table.sign_checkpoint(connection, sign, at=NOW)
        for entry in ENTRIES[10:]:
            log_table.append(connection, [entry])
        log_table.sign_checkpoint(connection, sign, at=NOW)
    return database


def test_entries_get_places_in_order_and_the_tree_of_their_hashes(database):
    with database.transaction(writes=True) as connection:
        assert log_table.head(connection).size == 0
        assert log_table.append(connection, []) == range(0)
        assert log_table.append(connection, ENTRIES[:3]) == range(3)
        assert log_table.append(connection, ENTRIES[3:4]) == range(3, 4)
        assert list(log_table.entries(connection)) == list(enumerate(ENTRIES[:4]))
        assert list(log_table.entries(connection, start=2)) == list(enumerate(ENTRIES[:4]))[2:]
        state = log_table.head(connection)
    assert (state.size, state.root) == (4, mth(ENTRIES[:4]))


def test_a_transaction_that_fails_leaves_no_entry(database):
    with database.transaction(writes=True) as connection:
        log_table.append(connection, ENTRIES[:2])
    with pytest.raises(RuntimeError, match="then something fails"):  # noqa: PT012, SIM117
        with database.transaction(writes=True) as connection:
            log_table.append(connection, ENTRIES[2:4])
            raise RuntimeError("then something fails")
    with database.transaction(writes=True) as connection:
        assert log_table.append(connection, ENTRIES[2:3]) == range(2, 3)
        assert log_table.verify(connection, open_checkpoint=opened).checkpoint.size == 3


def write_many(path, worker, count):
    with Database(f"sqlite:///{path}") as database:
        for number in range(count):
            with database.transaction(writes=True) as connection:
                log_table.append(connection, [f"{worker}/{number}".encode()])


def test_several_processes_write_one_log(database, tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write_many, args=(tmp_path / "log.db", worker, 20)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with database.transaction(writes=True) as connection:
        found = [entry.decode() for _, entry in log_table.entries(connection)]
        assert log_table.verify(connection, open_checkpoint=opened).checkpoint.size == 60
    assert sorted(found) == sorted(f"{worker}/{number}" for worker in range(3) for number in range(20))


def test_proofs_from_the_table_hold(filled):
    with filled.transaction(writes=True) as connection:
        early, late = [
            row.note for row in connection.execute(text("SELECT note FROM audit_checkpoints ORDER BY number"))
        ]
        assert log_table.latest_checkpoint(connection) == late
        proof = log_table.prove_inclusion(connection, ENTRIES[20], checkpoint=late)
        assert proof.verify(ENTRIES[20], opened).size == 37
        assert log_table.prove_inclusion(connection, ENTRIES[9], checkpoint=early).verify(ENTRIES[9], opened).size == 10
        with pytest.raises(AuditLogError, match="newer than the checkpoint"):
            log_table.prove_inclusion(connection, ENTRIES[10], checkpoint=early)
        with pytest.raises(AuditLogError, match="not in the audit log"):
            log_table.prove_inclusion(connection, b"never appended", checkpoint=late)
        consistent = log_table.prove_consistency(connection, 10, checkpoint=late)
        assert consistent.verify(opened(early), opened).size == 37


def test_the_same_state_is_signed_once(filled):
    with filled.transaction(writes=True) as connection:
        note = log_table.sign_checkpoint(connection, sign, at=NOW)
        assert note == log_table.latest_checkpoint(connection)
        assert connection.execute(text("SELECT count(*) FROM audit_checkpoints")).scalar_one() == 2


def test_a_whole_log_is_verified(filled):
    with filled.transaction(writes=True) as connection:
        kept = log_table.latest_checkpoint(connection)
        seen = []
        verified = log_table.verify(connection, open_checkpoint=opened, check_entry=seen.append, known=[kept])
    assert verified.checkpoint.size == 37
    assert verified.checkpoints == 3
    assert seen == ENTRIES


def rebuild(connection):
    """What somebody with the database does who knows how the tree is computed, but has no key."""
    rows = connection.execute(text("SELECT seq, entry FROM audit_log ORDER BY seq")).all()
    frontier = Frontier()
    for row in rows:
        leaf = leaf_hash(row.entry)
        connection.execute(text("UPDATE audit_log SET leaf_hash = :l WHERE seq = :s"), {"l": leaf, "s": row.seq})
        frontier.append(leaf)
    connection.execute(text("UPDATE audit_head SET size = :n, frontier = :f"), {"n": len(rows), "f": frontier.state})


CHANGE = "UPDATE audit_log SET entry = x'00' WHERE seq = 5"
SWAP = (
    "UPDATE audit_log SET seq = -1 WHERE seq = 5; UPDATE audit_log SET seq = 5 WHERE seq = 6; "
    "UPDATE audit_log SET seq = 6 WHERE seq = -1"
)


@pytest.mark.parametrize(
    ("statements", "rebuilt", "what"),
    [
        (CHANGE, False, "entry 5 is not what was appended"),
        (CHANGE, True, "first 10 entries are not those"),
        (SWAP, False, "head is not that|first 10 entries"),
        (SWAP, True, "first 10 entries are not those"),
        ("DELETE FROM audit_log WHERE seq = 5", False, "entry 5 is missing"),
        ("DELETE FROM audit_log WHERE seq = 36", False, "had 37 entries and has 36"),
        ("DELETE FROM audit_log WHERE seq = 36", True, "a checkpoint signs 37 entries, 36 are left"),
        ("DELETE FROM audit_log", True, "signs 37 entries, 0 are left"),
        ("UPDATE audit_head SET size = 36", False, "does not belong to 36"),
        ("UPDATE audit_head SET frontier = zeroblob(96)", False, "head is not that"),
        ("UPDATE audit_head SET origin = 'other'", False, "and this is other"),
        ("DELETE FROM audit_head", False, "no audit log"),
        ("INSERT INTO audit_log VALUES (37, zeroblob(32), x'00')", False, "entry 37 is not"),
        ("INSERT INTO audit_log SELECT 37, leaf_hash, entry FROM audit_log WHERE seq = 1", False, "head is not that"),
        ("UPDATE audit_checkpoints SET note = replace(note, '37', '36')", False, "changed|not signed by a key"),
        ("UPDATE audit_checkpoints SET note = ''", False, "malformed"),
    ],
)
def test_a_falsified_log_is_found_and_named(filled, statements, rebuilt, what):
    with filled.transaction(writes=True) as connection:
        for statement in statements.split("; "):
            connection.execute(text(statement))
        if rebuilt:
            rebuild(connection)
    with filled.transaction(writes=True) as connection, pytest.raises(AuditLogError, match=what):
        log_table.verify(connection, open_checkpoint=opened)


def test_a_checkpoint_kept_elsewhere_finds_a_log_that_was_rewritten_with_its_own_checkpoints(filled):
    with filled.transaction(writes=True) as connection:
        kept = log_table.latest_checkpoint(connection)
        connection.execute(text(CHANGE))
        connection.execute(text("DELETE FROM audit_checkpoints"))
        rebuild(connection)
        log_table.sign_checkpoint(connection, sign, at=NOW)
        log_table.verify(connection, open_checkpoint=opened)
        with pytest.raises(AuditLogError, match="first 37 entries are not those"):
            log_table.verify(connection, open_checkpoint=opened, known=[kept])


def test_an_entry_that_cannot_be_read_is_named(filled):
    def check(entry):
        if entry == ENTRIES[7]:
            raise AuditLogError("it makes no sense")

    with filled.transaction(writes=True) as connection, pytest.raises(AuditLogError, match=r"entry 7 .*makes no sense"):
        log_table.verify(connection, open_checkpoint=opened, check_entry=check)


def test_an_entry_that_is_too_long_is_not_appended(database):
    with database.transaction(writes=True) as connection:
        with pytest.raises(AuditLogError, match="more than"):
            log_table.append(connection, [b"x" * (log_table.MAX_ENTRY_BYTES + 1)])
        assert log_table.head(connection).size == 0
