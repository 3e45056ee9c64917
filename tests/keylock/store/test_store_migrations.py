"""migrations.py: every store ends at the one schema the code knows, and one that is not there yet says what to do."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import ClassVar

import pytest

pytest.importorskip("sqlalchemy")

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from keylock.errors import StoreError
from keylock.store import Database, LicenseStore
from keylock.store.database import _prepare_sqlite
from keylock.store.migrations import HEAD, _revisions
from keylock.store.schema import metadata

OLD_SCHEMA = """
CREATE TABLE licenses (id TEXT PRIMARY KEY, customer TEXT NOT NULL, issuer TEXT NOT NULL, issued_at BIGINT NOT NULL,
                       claims TEXT NOT NULL, revoked_at BIGINT, revoked_why TEXT NOT NULL DEFAULT '');
CREATE INDEX ix_licenses_customer ON licenses (customer);
INSERT INTO licenses VALUES ('lic_1', 'Acme', 'key', 0,
  '{"id":"lic_1","customer":"Acme","models":["*"],"explainers":["*"],"issued_at":"2026-01-01T00:00:00Z",
    "not_before":"2026-01-01T00:00:00Z","expires":"2027-01-01T00:00:00Z","features":{}}', 5, 'why')
"""


def run_sql(url, script):
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        for statement in script.split(";"):
            connection.exec_driver_sql(statement)
    engine.dispose()


def test_migrations_make_the_schema_the_code_knows(store_url):
    with Database(store_url) as database, database.transaction() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_head_is_the_newest_migration():
    assert max(_revisions()) == HEAD


def test_store_from_before_migrations_is_refused_and_migrates(store_url):
    run_sql(store_url, OLD_SCHEMA)
    with pytest.raises(StoreError, match="keylock store migrate"):
        LicenseStore(store_url)
    with Database.of_any_schema(store_url) as database:
        assert database.migrate() == ("0001", HEAD)
        assert database.migrate() == (HEAD, HEAD)
    with LicenseStore(store_url) as store:
        assert store.get("lic_1").revoked_why == "why"
        assert store.get("lic_1").suspended_at is None


def test_store_of_a_newer_keylock_is_refused(store_url):
    with Database(store_url) as database, database.transaction(writes=True) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="upgrade keylock"):
        LicenseStore(store_url)
    with Database.of_any_schema(store_url) as database, pytest.raises(StoreError, match="upgrade keylock"):
        database.migrate()


def test_migration_that_fails_leaves_the_store_as_it_was(store_url):
    run_sql(store_url, OLD_SCHEMA + "; CREATE TABLE rates (something TEXT)")
    with Database.of_any_schema(store_url) as database, pytest.raises(StoreError, match="rates"):
        database.migrate()
    run_sql(store_url, "DROP TABLE rates")
    with Database.of_any_schema(store_url) as database:
        assert database.migrate() == ("0001", HEAD)


def test_several_processes_fill_one_store(store_url):
    program = "import sys; from keylock.store import Database; Database(sys.argv[1]).close()"
    processes = [subprocess.Popen([sys.executable, "-c", program, store_url]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]


class Refusing(sqlite3.Connection):
    """Refuses to switch its journal, as SQLite does at once when another process switches at the same moment."""

    refusals: ClassVar[list[int]] = []

    def execute(self, statement, *parameters):
        if "journal_mode =" in statement and self.refusals:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = self.refusals.pop()
            raise error
        return super().execute(statement, *parameters)


def test_a_process_that_opens_a_new_store_at_the_same_moment_is_waited_for(tmp_path):
    with closing(sqlite3.connect(tmp_path / "licenses.db", factory=Refusing)) as connection:
        Refusing.refusals[:] = [sqlite3.SQLITE_BUSY] * 2
        _prepare_sqlite(connection, None)
        assert Refusing.refusals == []
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_other_failures_to_open_a_store_are_not_tried_again(tmp_path):
    with closing(sqlite3.connect(tmp_path / "licenses.db", factory=Refusing)) as connection:
        Refusing.refusals[:] = [sqlite3.SQLITE_IOERR] * 2
        with pytest.raises(sqlite3.OperationalError):
            _prepare_sqlite(connection, None)
        assert Refusing.refusals == [sqlite3.SQLITE_IOERR]
