"""licenses.py, database.py: what was issued is remembered, what was revoked stays so, also under many writers."""

import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("sqlalchemy")

from sqlalchemy import inspect, text

from keylock.errors import LicenseError, LicenseReason, ServiceError, StoreError
from keylock.licensing import License, LicenseStatus, Quota
from keylock.store import LicenseStore

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def make_license(id="lic_1", customer="Acme", **changes):
    fields = {
        "id": id,
        "customer": customer,
        "models": ("*",),
        "explainers": ("grad_cam",),
        "issued_at": NOW,
        "not_before": NOW,
        "expires": NOW + timedelta(days=30),
        "features": {"tier": ["gold", 1]},
    }
    return License(**(fields | changes))


@pytest.fixture
def sqlite_url(tmp_path):
    return f"sqlite:///{tmp_path / 'licenses.db'}"


@pytest.fixture
def store(store_url):
    with LicenseStore(store_url) as store:
        yield store


@pytest.fixture
def sqlite_store(sqlite_url):
    with LicenseStore(sqlite_url) as store:
        yield store


def run(store, *statements):
    with store.database.transaction() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_license_reads_back_also_after_reopening(store, store_url):
    store.add(make_license(), issuer="key")
    again = LicenseStore(store_url)
    for opened in (store, again):
        stored = opened.get("lic_1")
        assert stored.license == make_license()
        assert (stored.issuer, stored.revoked_at, stored.revoked_why) == ("key", None, "")
    again.close()


def test_list_is_in_order_of_issue_and_can_be_narrowed(store):
    store.add(make_license("lic_b", issued_at=NOW + timedelta(hours=1)), issuer="key")
    store.add(make_license("lic_c"), issuer="key")
    store.add(make_license("lic_a", customer="Other"), issuer="key")
    assert [stored.license.id for stored in store.list()] == ["lic_a", "lic_c", "lic_b"]
    assert [stored.license.id for stored in store.list(customer="Other")] == ["lic_a"]
    assert store.list(customer="Nobody") == ()


def test_revoked_license_is_refused_with_its_reason(store):
    store.add(make_license(), issuer="key")
    store.check("lic_1")
    assert store.get("lic_1").revoked_at is None
    revoked = store.revoke("lic_1", at=NOW + timedelta(days=1), why="did not pay")
    assert (revoked.revoked_at, revoked.revoked_why) == (NOW + timedelta(days=1), "did not pay")
    assert store.get("lic_1").revoked_at is not None
    with pytest.raises(LicenseError, match="was revoked") as caught:
        store.check("lic_1")
    assert caught.value.reason == LicenseReason.REVOKED
    assert "pay" not in str(caught.value)


def test_second_revocation_changes_nothing(store):
    store.add(make_license(), issuer="key")
    first = store.revoke("lic_1", at=NOW, why="first")
    assert store.revoke("lic_1", at=NOW + timedelta(days=1), why="second") == first


def test_revocation_is_seen_by_other_connections_at_once(store, store_url):
    other = LicenseStore(store_url)
    store.add(make_license(), issuer="key")
    assert other.get("lic_1").revoked_at is None
    store.revoke("lic_1", at=NOW)
    assert other.get("lic_1").revoked_at is not None
    other.close()


def test_unknown_license_is_refused_with_its_reason(store):
    for act in (store.get, store.check, lambda id: store.revoke(id, at=NOW)):
        with pytest.raises(LicenseError, match="lic_none") as caught:
            act("lic_none")
        assert caught.value.reason == LicenseReason.UNKNOWN


def test_id_is_used_once(store):
    store.add(make_license(), issuer="key")
    with pytest.raises(ServiceError, match="already"):
        store.add(make_license(customer="Other"), issuer="key")
    assert store.get("lic_1").license.customer == "Acme"


def test_quotes_in_a_name_are_only_text(store):
    store.add(make_license(customer="Robert'); DROP TABLE licenses;--"), issuer="key")
    assert len(store.list()) == 1
    with pytest.raises(LicenseError):
        store.get("' OR '1'='1")


@pytest.mark.parametrize(
    ("days", "revoked", "status"),
    [
        (-1, False, LicenseStatus.NOT_YET_VALID),
        (0, False, LicenseStatus.ACTIVE),
        (29, False, LicenseStatus.ACTIVE),
        (30, False, LicenseStatus.EXPIRED),
        (0, True, LicenseStatus.REVOKED),
        (30, True, LicenseStatus.REVOKED),
    ],
)
def test_status(store, days, revoked, status):
    store.add(make_license(), issuer="key")
    if revoked:
        store.revoke("lic_1", at=NOW)
    assert store.get("lic_1").status(NOW + timedelta(days=days)) == status


def test_many_threads_write_and_lose_nothing(store):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.add(make_license(f"lic_{n}"), issuer="key"), range(64)))
        list(pool.map(lambda n: store.revoke(f"lic_{n}", at=NOW), range(0, 64, 2)))
    stored = store.list()
    assert len(stored) == 64
    assert sum(one.revoked_at is not None for one in stored) == 32


def test_several_processes_write_and_lose_nothing(store, store_url):
    program = """
import sys
from datetime import UTC, datetime, timedelta
from keylock.licensing import License
from keylock.store import LicenseStore
now = datetime(2026, 11, 22, tzinfo=UTC)
store = LicenseStore(sys.argv[1])
for n in range(20):
    grant = License(id=f"lic_{sys.argv[2]}_{n}", customer="c", models=("*",), explainers=("*",), issued_at=now,
                    not_before=now, expires=now + timedelta(days=1))
    store.add(grant, issuer="key")
"""
    processes = [subprocess.Popen([sys.executable, "-c", program, store_url, str(n)]) for n in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(store.list()) == 60


def test_writer_takes_the_lock_before_it_reads(sqlite_store, tmp_path):
    """A transaction that reads first and writes later would fail under load, whatever the timeout."""
    other = sqlite3.connect(tmp_path / "licenses.db", timeout=0, isolation_level=None)
    database = sqlite_store.database
    with database.transaction(writes=True), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    with database.transaction():
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    other.close()


def test_database_is_in_wal_mode_and_waits_for_the_disk(sqlite_store):
    with sqlite_store.database.transaction() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2


def test_store_is_private(sqlite_store, tmp_path):
    sqlite_store.add(make_license(), issuer="key")
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("licenses.db*")} == {0o600}


def test_token_is_not_kept(store):
    """No column of any table is for a token."""
    with store.database.transaction() as connection:
        inspector = inspect(connection)
        columns = {c["name"] for table in inspector.get_table_names() for c in inspector.get_columns(table)}
    assert {name for name in columns if "token" in name} == {"token_id"}


def test_suspended_license_is_refused_until_it_is_reinstated(store):
    store.add(make_license(), issuer="key")
    suspended = store.suspend("lic_1", at=NOW, why="dispute")
    assert suspended.status(NOW) == LicenseStatus.SUSPENDED
    assert suspended.suspended_why == "dispute"
    with pytest.raises(LicenseError, match="suspended") as caught:
        store.check("lic_1")
    assert caught.value.reason == LicenseReason.SUSPENDED
    assert "dispute" not in str(caught.value)
    assert store.reinstate("lic_1").status(NOW) == LicenseStatus.ACTIVE
    store.check("lic_1")


def test_reinstating_does_not_undo_a_revocation(store):
    store.add(make_license(), issuer="key")
    store.revoke("lic_1", at=NOW)
    assert store.reinstate("lic_1").status(NOW) == LicenseStatus.REVOKED


def test_tokens_issued_before_the_cutoff_are_refused(store):
    store.add(make_license(), issuer="key")
    store.add(make_license("lic_2"), issuer="key")
    cutoff = NOW + timedelta(hours=1)
    assert store.refuse_before(cutoff, license_id="lic_1") == 1
    for issued_at, good in ((cutoff - timedelta(seconds=1), False), (cutoff, True)):
        if good:
            store.check("lic_1", issued_at=issued_at)
        else:
            with pytest.raises(LicenseError, match="token") as caught:
                store.check("lic_1", issued_at=issued_at)
            assert caught.value.reason == LicenseReason.REVOKED
    store.check("lic_2", issued_at=NOW)
    assert store.refuse_before(cutoff) == 1
    with pytest.raises(LicenseError):
        store.check("lic_2", issued_at=NOW)
    # It never moves back.
    assert store.refuse_before(NOW, license_id="lic_1") == 0
    assert store.get("lic_1").refuse_before == cutoff


def test_one_access_token_is_revoked_by_its_id(store):
    store.add(make_license(), issuer="key")
    store.revoke_token("tok_1", at=NOW)
    store.revoke_token("tok_1", at=NOW)
    store.check("lic_1", token_id="tok_2")
    with pytest.raises(LicenseError, match="token") as caught:
        store.check("lic_1", token_id="tok_1")
    assert caught.value.reason == LicenseReason.REVOKED


def test_renewed_license_has_new_terms_and_its_old_fate(store):
    store.add(make_license(), issuer="key")
    store.suspend("lic_1", at=NOW)
    renewed = store.renew(make_license(expires=NOW + timedelta(days=400), quota=Quota(day=3)), issuer="other")
    assert (renewed.issuer, renewed.license.quota.day) == ("other", 3)
    assert renewed.suspended_at == NOW
    store.revoke("lic_1", at=NOW)
    with pytest.raises(LicenseError, match="issue a new one"):
        store.renew(make_license(), issuer="key")
    with pytest.raises(LicenseError, match="lic_9"):
        store.renew(make_license("lic_9"), issuer="key")


def test_license_that_was_edited_in_the_store_is_named(store):
    store.add(make_license(), issuer="key")
    with store.database.transaction(writes=True) as connection:
        connection.execute(text("UPDATE licenses SET claims = '{}'"))
    with pytest.raises(StoreError, match="lic_1 in the store was changed by hand"):
        store.check("lic_1")


def test_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be looked at " * 10)
    with pytest.raises(ServiceError, match="not a database"):
        LicenseStore(f"sqlite:///{path}")
    assert path.read_text().startswith("not a database")


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(ServiceError, match="cannot use the license store"):
        LicenseStore(f"sqlite:///{tmp_path / 'missing' / 'licenses.db'}")


def test_locked_store_is_named(sqlite_store, tmp_path, monkeypatch):
    sqlite_store.add(make_license(), issuer="key")
    other = sqlite3.connect(tmp_path / "licenses.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        run(sqlite_store, "PRAGMA busy_timeout = 10", "UPDATE licenses SET issuer = ''")
    other.close()


def test_full_disk_is_named_and_loses_nothing(sqlite_store):
    sqlite_store.add(make_license(), issuer="key")
    with pytest.raises(StoreError, match="full"):
        run(sqlite_store, "PRAGMA max_page_count = 1", "UPDATE licenses SET customer = hex(zeroblob(500000))")
    assert sqlite_store.get("lic_1").license == make_license()


def test_unreachable_database_is_named_without_its_password():
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match="database is running") as caught:
        LicenseStore("postgresql://keylock:geheim@127.0.0.1:9/keylock")
    assert "geheim" not in str(caught.value)
    assert caught.value.passing


@pytest.mark.parametrize("url", ["", "licenses.db", "sqlite://", "sqlite:///:memory:", "mysql://user:secret@host/db"])
def test_other_url_is_refused_and_not_repeated(url):
    with pytest.raises(ServiceError, match="sqlite:///PATH") as caught:
        LicenseStore(url)
    assert "secret" not in str(caught.value)


def test_licensing_needs_no_sqlalchemy():
    program = "import sys, keylock.licensing; raise SystemExit(bool({'torch', 'sqlalchemy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_store_that_is_a_file_imports_nothing_of_postgresql(tmp_path):
    program = (
        "import sys; from keylock.store import LicenseStore; LicenseStore(sys.argv[1]).close(); "
        "raise SystemExit(any('postgresql' in name or 'psycopg' in name for name in sys.modules))"
    )
    url = f"sqlite:///{tmp_path}/licenses.db"
    LicenseStore(url).close()
    command = [sys.executable, "-c", program, url]
    assert subprocess.run(command, check=False).returncode == 0
