"""audit.py: whatever happens to a charge happens to its entry in the log; the two are compared request by request."""

import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from sqlalchemy import text

from keylock.crypto.digests import digest_of
from keylock.errors import AuditLogError, MeteringError
from keylock.licensing.charges import AnswerDigests, Charge
from keylock.licensing.receipts import entry_of, parse_entry
from keylock.store import Database, log_table
from keylock.store.group_commit import GroupCommit
from keylock.store.logged_charges import compare_with_ledger, record_charge
from keylock.store.reconcile import reconcile
from keylock.transparency import Checkpoint

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
DIGEST = "sha256:" + "ab" * 32
CHARGE = Charge(
    license_id="lic_1",
    request_id="r-0",
    request_digest=DIGEST,
    model_digest=DIGEST,
    model_name="tiny",
    explainer="gradient",
    parameters={},
    target=-1,
    units=3,
    keyed=True,
    time=NOW,
    image_digests=(DIGEST,),
    answer=AnswerDigests(maps=(DIGEST,), scalings=(None,), predictions=(DIGEST,), targets=(DIGEST,)),
)


@pytest.fixture
def database(store_url):
    with Database(store_url) as database:
        yield database


def charges(count):
    return [replace(CHARGE, request_id=f"r-{number}") for number in range(count)]


def write_ledger(connection, charge):
    connection.execute(
        text(
            "INSERT INTO ledger (license_id, request_id, request_digest, model_digest, explainer, images, units, "
            "overage, day, month, attempt, charged_at, answer_digest) VALUES (:license_id, :request_id, "
            ":request_digest, :model_digest, :explainer, 1, :units, 0, 0, 0, '', :charged_at, :answer_digest)"
        ),
        {
            "license_id": charge.license_id,
            "request_id": charge.request_id,
            "request_digest": charge.request_digest,
            "model_digest": charge.model_digest,
            "explainer": charge.explainer,
            "units": charge.units,
            "charged_at": int(charge.time.timestamp()),
            "answer_digest": charge.answer.digest(),
        },
    )


def commit(database, many, *, fail=()):
    """Charges as the ledger does it: the row and the entry in one transaction; some operations refuse or fail."""

    def operation(charge):
        def run(connection):
            if charge.request_id in fail:
                raise MeteringError("refused")
            write_ledger(connection, charge)
            record_charge(connection, charge, entry_of(charge))

        return run

    group = GroupCommit(database)
    futures = [group.submit(operation(charge), order=charge.license_id) for charge in many]
    group.close()
    return [future.exception() for future in futures]


def logged(database):
    with database.transaction(snapshot=True) as connection:
        return [parse_entry(entry) for _, entry in log_table.entries(connection)]


def differences(database):
    with database.transaction(snapshot=True) as connection:
        return [(one.request_id, one.what) for one in compare_with_ledger(connection)]


def test_every_charge_is_an_entry_in_order(database):
    assert commit(database, charges(50)) == [None] * 50
    assert logged(database) == charges(50)
    assert differences(database) == []


def another_answer(charge, name="other"):
    return replace(
        charge, answer=replace(charge.answer, maps=(digest_of(name.encode()),)), repeats=charge.answer.digest()
    )


def record(database, many):
    group = GroupCommit(database)
    futures = [
        group.submit(partial(record_charge, charge=one, entry=entry_of(one)), order=one.license_id) for one in many
    ]
    group.close()
    assert [future.exception() for future in futures] == [None] * len(futures)


def test_another_answer_is_one_entry_however_often_it_is_given(database):
    first, second = charges(2)
    commit(database, [first, second])
    given = [another_answer(first), another_answer(second), another_answer(first), another_answer(first, "third")]
    record(database, given)
    record(database, given[:2])
    assert sorted(logged(database), key=str) == sorted([first, second, *given[:2], given[3]], key=str)
    assert differences(database) == []


@pytest.mark.parametrize(
    "change",
    [
        {"units": 9},
        {"repeats": digest_of(b"another")},
        {"request_id": "r-7"},
        {"answer": CHARGE.answer},
        {"time": NOW + timedelta(days=1)},
    ],
)
def test_an_entry_that_repeats_no_charge_is_found(change, database):
    commit(database, charges(1))
    record(database, [replace(another_answer(CHARGE), **change)])
    assert [what for _, what in differences(database)] == ["entry 1 of the log repeats what was never charged"]


def test_a_charge_that_is_refused_has_no_entry(database):
    failures = commit(database, charges(5), fail={"r-1", "r-3"})
    assert [failure is None for failure in failures] == [True, False, True, False, True]
    assert [charge.request_id for charge in logged(database)] == ["r-0", "r-2", "r-4"]
    assert differences(database) == []


def test_a_charge_that_fails_takes_nothing_of_the_others_with_it(database):
    with database.transaction(writes=True) as connection:
        write_ledger(connection, charges(3)[1])
    failures = commit(database, charges(3))
    assert [failure is None for failure in failures] == [True, False, True]
    assert [charge.request_id for charge in logged(database)] == ["r-0", "r-2"]
    assert differences(database) == [("r-1", "it is charged and not in the log")]


def test_an_entry_without_a_charge_is_found(database):
    commit(database, charges(2))
    with database.transaction(writes=True) as connection:
        connection.execute(text("DELETE FROM ledger WHERE request_id = 'r-1'"))
    assert differences(database) == [("r-1", "it is in the log and not charged")]


def test_a_charge_that_was_edited_is_found(database):
    commit(database, charges(2))
    with database.transaction(writes=True) as connection:
        connection.execute(text("UPDATE ledger SET units = 1 WHERE request_id = 'r-0'"))
    assert differences(database) == [("r-0", "the log says something else about it than the ledger")]


def test_a_second_entry_of_one_charge_is_found(database):
    commit(database, charges(1))
    with database.transaction(writes=True) as connection:
        log_table.append(connection, [entry_of(CHARGE)])
    assert differences(database) == [("r-0", "entry 1 of the log charges it a second time")]


def test_an_entry_that_is_none_is_named(database):
    with database.transaction(writes=True) as connection:
        log_table.append(connection, [b"{}"])
    with pytest.raises(AuditLogError, match="entry 0 of the audit log cannot be read"):
        differences(database)


def test_every_store_has_a_log_of_its_own_name(database, tmp_path):
    with database.transaction() as connection:
        first = log_table.head(connection)
    with Database(f"sqlite:///{tmp_path / 'other.db'}") as other, other.transaction() as connection:
        second = log_table.head(connection)
    assert first.origin != second.origin
    assert first.origin.startswith("keylock/log/")


def test_ledger_counters_and_log_agree_after_servers_were_killed(database, store_url):
    """Three processes on one store are killed in the middle of their work; nothing that was answered is lost."""
    script = str(Path(__file__).with_name("charge_until_killed.py"))
    workers = [
        subprocess.Popen([sys.executable, script, store_url, name], stdout=subprocess.PIPE, text=True) for name in "abc"
    ]
    # Each has answered something, so none is killed before it began; the others go on while one dies.
    lines = [worker.stdout.readline() for worker in workers]
    assert all(lines)
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
        lines += worker.stdout.read().splitlines(keepends=True)
        worker.wait()
        worker.stdout.close()
    with database.transaction(snapshot=True) as connection:
        assert compare_with_ledger(connection) == ()
        assert reconcile(connection).differences == ()
        verified = log_table.verify(connection, open_checkpoint=Checkpoint.parse_unverified, check_entry=parse_entry)
        # In the same moment: PostgreSQL may still be ending what a process had sent before it was killed.
        entries = [parse_entry(entry) for _, entry in log_table.entries(connection)]
    charged = {(charge.license_id, charge.request_id) for charge in entries}
    assert len(charged) == verified.checkpoint.size
    assert {tuple(line.split()) for line in lines if line.endswith("\n")} <= charged
