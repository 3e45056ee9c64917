"""identity.py, restoring.py: a store that is not the one it was is noticed, and a restored one forgets nothing."""

import os
import shutil
import sqlite3
import stat
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("sqlalchemy")

from keylock.errors import InputError, StoreError, StoreReplacedError
from keylock.licensing import License, Quota
from keylock.store import Database, LicenseStore
from keylock.store.backup import back_up
from keylock.store.identity import Presence, identity_of, servers_running
from keylock.store.restoring import adopt, restore


class _BrokenError(Exception):
    """Ends a transaction that is not to be committed."""


NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)


def license_of(number):
    end = NOW + timedelta(days=30)
    return License(
        id=f"lic_{number}",
        customer="Acme",
        models=("*",),
        explainers=("*",),
        issued_at=NOW,
        not_before=NOW,
        expires=end,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "licenses.db"


@pytest.fixture
def store(path):
    with LicenseStore(f"sqlite:///{path}") as opened:
        opened.add(license_of(1), issuer="key")
        opened.add(license_of(2), issuer="key")
        yield opened


@pytest.fixture
def backup(store, tmp_path):
    back_up(store.database, tmp_path / "backup.db")
    return tmp_path / "backup.db"


def other_file(path, backup):
    os.replace(backup, path)


def removed(path, backup):
    path.unlink()


def removed_and_made_again(path, backup):
    path.unlink()
    LicenseStore(f"sqlite:///{path}").close()


@pytest.mark.parametrize("change", [other_file, removed, removed_and_made_again])
def test_store_whose_file_is_another_one_is_of_no_more_use(store, path, backup, change):
    change(path, backup)
    uses = (
        lambda: store.get("lic_1"),
        lambda: store.check("lic_1"),
        lambda: store.revoke("lic_1", at=NOW),
        lambda: store.list(),
        lambda: store.database.check(),
    )
    for use in (*uses, *uses):
        with pytest.raises(StoreReplacedError, match="store restore"):
            use()


def test_what_was_written_while_the_file_was_replaced_is_an_error(store, path, backup):
    def write():
        with store.database.transaction(writes=True) as connection:
            connection.exec_driver_sql("UPDATE licenses SET revoked_at = 1")
            os.replace(backup, path)

    with pytest.raises(StoreReplacedError):
        write()


def test_store_that_comes_back_is_still_of_no_use_until_it_is_opened_anew(store, path, tmp_path):
    os.replace(path, tmp_path / "aside.db")
    with pytest.raises(StoreReplacedError):
        store.get("lic_1")
    os.replace(tmp_path / "aside.db", path)
    with pytest.raises(StoreReplacedError):
        store.get("lic_1")
    with LicenseStore(f"sqlite:///{path}") as fresh:
        assert fresh.get("lic_1").license.id == "lic_1"


def overwrite_from(source, target):
    """Puts a whole database into another one that stays the same file, as `.restore` of SQLite's shell does."""
    with sqlite3.connect(source) as one, sqlite3.connect(target) as other:
        one.backup(other)
    one.close()
    other.close()


def test_earlier_state_in_the_same_file_is_noticed(store, path, tmp_path):
    presence = Presence(store.database, now=lambda: NOW)
    presence.confirm()
    back_up(store.database, tmp_path / "now.db")
    presence.confirm()
    overwrite_from(tmp_path / "now.db", path)
    with pytest.raises(StoreReplacedError, match="earlier state"):
        presence.confirm()
    with pytest.raises(StoreReplacedError):
        store.get("lic_1")


def test_other_store_in_the_same_file_is_noticed(store, path, tmp_path):
    presence = Presence(store.database, now=lambda: NOW)
    presence.confirm()
    LicenseStore(f"sqlite:///{tmp_path / 'other.db'}").close()
    overwrite_from(tmp_path / "other.db", path)
    with pytest.raises(StoreReplacedError, match="another store"):
        presence.confirm()


def test_servers_confirm_side_by_side_and_take_their_leave(store_url):
    with Database(store_url) as one, Database(store_url) as other:
        presences = [Presence(one, now=lambda: NOW), Presence(other, now=lambda: LATER)]
        for _ in range(3):
            for presence in presences:
                presence.confirm()
        with one.transaction() as connection:
            assert servers_running(connection, LATER - timedelta(seconds=50)) == 2
            assert servers_running(connection, LATER) == 1
        presences[1].leave()
        presences[0].confirm()
        with one.transaction() as connection:
            assert servers_running(connection, NOW) == 1


def test_new_generation_is_noticed_by_a_server_that_runs(store_url):
    with Database(store_url) as used:
        presence = Presence(used, now=lambda: NOW)
        presence.confirm()
        with Database(store_url) as database:
            with pytest.raises(InputError, match="stop every server"):
                adopt(database, now=NOW)
            with database.transaction() as connection:
                before = identity_of(connection)
            adopt(database, now=LATER)
            with database.transaction() as connection:
                after = identity_of(connection)
        assert after.store_id == before.store_id
        assert after.generation != before.generation
        with pytest.raises(StoreReplacedError, match="restored"):
            presence.confirm()


def test_restored_store_forgets_no_revocation(store, path, backup):
    store.revoke("lic_1", at=LATER, why="left")
    store.suspend("lic_2", at=LATER, why="unpaid")
    store.refuse_before(LATER, license_id="lic_2")
    store.revoke_token("tok_1", at=LATER)
    store.add(license_of(3), issuer="key")
    store.close()
    done = restore(path, backup, now=LATER)
    assert (done.readable, done.closed, done.tokens, done.lost_licenses, done.lost_charges) == (True, 2, 1, 1, 0)
    with LicenseStore(f"sqlite:///{path}") as fresh:
        first, second = fresh.get("lic_1"), fresh.get("lic_2")
        assert (first.revoked_at, first.revoked_why) == (LATER, "left")
        assert (second.suspended_at, second.suspended_why, second.refuse_before) == (LATER, "unpaid", LATER)
        assert len(fresh.list()) == 2
        with fresh.database.transaction() as connection:
            assert connection.exec_driver_sql("SELECT token_id FROM revoked_tokens").scalars().all() == ["tok_1"]
    with LicenseStore(f"sqlite:///{done.kept}") as kept:
        assert len(kept.list()) == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_restore_says_when_the_old_store_cannot_be_read(store, path, backup):
    store.close()
    path.write_bytes(b"not a database" * 1000)
    for side in ("-wal", "-shm"):
        path.with_name(path.name + side).unlink(missing_ok=True)
    done = restore(path, backup, now=LATER)
    assert not done.readable
    assert done.kept.read_bytes().startswith(b"not a database")
    with LicenseStore(f"sqlite:///{path}") as fresh:
        assert len(fresh.list()) == 2


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "not taken"])
@pytest.mark.parametrize("looked_before", [0, 1])
def test_a_transaction_whose_end_fails_is_no_other_store(store, monkeypatch, looked_before, taken):
    """As where the connection to a database breaks while it commits: whether it did is not known."""
    presence, whole = Presence(store.database, now=lambda: NOW), Database.transaction
    for _ in range(looked_before):
        presence.confirm()

    @contextmanager
    def failing(database, **options):
        with suppress(_BrokenError), whole(database, **options) as connection:
            yield connection
            if not taken:
                raise _BrokenError
        raise StoreError("the connection broke")

    with monkeypatch.context() as patched:
        patched.setattr(Database, "transaction", failing)
        for _ in range(3):
            with pytest.raises(StoreError, match="the connection broke"):
                presence.confirm()
    presence.confirm()
    presence.confirm()


def test_a_server_whose_clock_is_weeks_behind_keeps_its_mark(store):
    presence = Presence(store.database, now=lambda: NOW)
    presence.confirm()
    Presence(store.database, now=lambda: NOW + timedelta(days=500)).confirm()
    presence.confirm()


def test_restore_fills_a_place_that_is_empty(store, path, backup, tmp_path):
    target = tmp_path / "elsewhere.db"
    done = restore(target, backup, now=LATER)
    assert (done.kept, done.readable) == (None, True)
    with LicenseStore(f"sqlite:///{target}") as fresh, store.database.transaction() as connection:
        assert len(fresh.list()) == 2
        with fresh.database.transaction() as other:
            assert identity_of(other).store_id == identity_of(connection).store_id
            assert identity_of(other).generation != identity_of(connection).generation


def test_restore_waits_for_servers_that_run(store, path, backup):
    presence = Presence(store.database, now=lambda: NOW)
    presence.confirm()
    with pytest.raises(InputError, match="1 server uses"):
        restore(path, backup, now=NOW + timedelta(seconds=5))
    presence.confirm()
    presence.leave()
    restore(path, backup, now=NOW + timedelta(seconds=5))


def test_server_that_looked_before_the_clock_was_set_back_is_forgotten(store, path, backup):
    presence = Presence(store.database, now=lambda: NOW)
    presence.confirm()
    with pytest.raises(InputError, match="1 server uses"):
        restore(path, backup, now=NOW - timedelta(seconds=30))
    restore(path, backup, now=NOW - timedelta(hours=1))


def test_restored_store_forgets_no_renewal(store, path, backup):
    sooner, narrower = NOW + timedelta(days=1), Quota(total=3)
    first = license_of(1).model_copy(update={"issued_at": LATER, "expires": sooner, "quota": narrower})
    store.renew(first, issuer="newer key")
    restored = restore(path, backup, now=LATER)
    with LicenseStore(f"sqlite:///{path}") as fresh:
        assert fresh.get("lic_1").license == first
        assert fresh.get("lic_1").issuer == "newer key"
        assert fresh.get("lic_2").license == license_of(2)
    assert (restored.renewed, restored.closed) == (1, 0)


def test_restored_store_takes_over_no_terms_that_cannot_be_read(store, path, backup):
    with store.database.transaction(writes=True) as connection:
        connection.exec_driver_sql("UPDATE licenses SET claims = '{}', issued_at = issued_at + 9 WHERE id = 'lic_1'")
    assert restore(path, backup, now=LATER).renewed == 0
    with LicenseStore(f"sqlite:///{path}") as fresh:
        assert fresh.get("lic_1").license == license_of(1)


@pytest.mark.parametrize("content", [None, b"", b"no database" * 99, "truncated"])
def test_restore_refuses_what_is_no_backup_and_changes_nothing(store, path, backup, tmp_path, content):
    bad = tmp_path / "bad.db"
    if content == "truncated":
        bad.write_bytes(backup.read_bytes()[:5000])
    elif content is not None:
        bad.write_bytes(content)
    with pytest.raises(InputError):
        restore(path, bad, now=LATER)
    assert len(store.list()) == 2
    assert not list(tmp_path.glob(".licenses*"))


def test_restore_refuses_the_store_itself(store, path):
    with pytest.raises(InputError, match="the store itself"):
        restore(path, path, now=LATER)


def test_restore_that_cannot_write_says_so(store, path, backup, tmp_path):
    missing = tmp_path / "missing" / "licenses.db"
    with pytest.raises(StoreError, match="check the disk"):
        restore(missing, backup, now=LATER)


def test_copied_file_of_a_store_restores_with_its_log(store, path, tmp_path):
    """Somebody copies the file and its write-ahead log instead of making a backup."""
    for side in ("", "-wal", "-shm"):
        if path.with_name(path.name + side).exists():
            shutil.copy(path.with_name(path.name + side), tmp_path / f"copied.db{side}")
    store.close()
    restore(path, tmp_path / "copied.db", now=LATER)
    with LicenseStore(f"sqlite:///{path}") as fresh:
        assert len(fresh.list()) == 2
