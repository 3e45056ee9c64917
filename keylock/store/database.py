"""Connections and transactions, alike on SQLite and PostgreSQL. What differs between the two is in this file.

SQLite runs in WAL mode with `synchronous = FULL`: what was committed survives a power cut. Every transaction that
writes begins with `BEGIN IMMEDIATE`, so that several processes may write and many may read. What a power cut may take
is committed by a `Writer` without waiting for the disk.

A file can be replaced or removed while it is open, and then old connections go on with the old one. So whoever uses a
`Database` is told, before it reads and after it has written, that the path leads to another file.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError, SQLAlchemyError, TimeoutError

from keylock.errors import StoreError, StoreReplacedError
from keylock.store import migrations
from keylock.store.raw_sql import Statement
from keylock.store.schema import metadata

__all__ = ["Database", "Writer", "sqlite_path"]

_BUSY_TIMEOUT_MS: Final = 10_000
_PAUSE_S: Final = 0.01
_WRITES: Final = "keylock_writes"
_BEGIN: Final = Statement("BEGIN")
_BEGIN_WRITING: Final = Statement("BEGIN IMMEDIATE")
_WAIT_FOR_DISK: Final = {
    True: Statement("PRAGMA synchronous = FULL"),
    # In a write-ahead log: no commit waits for the disk, and whatever is written from it into the database does.
    False: Statement("PRAGMA synchronous = NORMAL"),
}
_DO_NOT_WAIT_FOR_OTHERS: Final = Statement("PRAGMA busy_timeout = 0")
# The changes of such a transaction reach the disk together and in the order of the commits, or not at all.
_DO_NOT_WAIT: Final = Statement("SET LOCAL synchronous_commit = OFF")
# Who reads a snapshot holds up nobody, and computes or prints between rows.
_READ_AT_LEISURE: Final = Statement("SET LOCAL idle_in_transaction_session_timeout = '1h'")
_FORMS: Final = "sqlite:///PATH or postgresql://USER@HOST/DATABASE"
# A server that stands still inside a transaction must not hold up the others; one that waits for it must outlast it.
_POSTGRESQL_OPTIONS: Final = (
    "-c idle_in_transaction_session_timeout=5000 -c lock_timeout=10000 -c statement_timeout=20000"
)


class Database:
    """One store. Its methods may be called from several threads and processes.

    Attributes:
        name: What to call it in messages; has no password in it.
    """

    _file: tuple[int, int] | None = None
    _impatient: Connection | None = None

    def __init__(self, url: str) -> None:
        """Opens a store that has the schema of this keylock, and fills one that is empty.

        Args:
            url: `sqlite:///` and the path of a file, or `postgresql://user@host/database`.

        Raises:
            StoreError: If it cannot be opened, or has the schema of another keylock.
        """
        self._open(url)
        try:
            with self.transaction() as connection:
                # From now on it must be this file.
                self._file = self._look()
                empty = migrations.revision_of(connection) is None
                if not empty:
                    migrations.check(connection, name=self.name)
            if empty:
                self.migrate()
        except BaseException:
            self.close()
            raise

    @classmethod
    def of_any_schema(cls, url: str) -> Self:
        """Opens a store to look at its schema, or to migrate it.

        Raises:
            StoreError: If the URL is none.
        """
        database = cls.__new__(cls)
        database._open(url)
        return database

    def _open(self, url: str) -> None:
        parsed = _parse(url)
        self.path: str | None = None
        self._replaced: StoreReplacedError | None = None
        options: dict[str, Any] = {}
        if parsed.get_backend_name() == "sqlite":
            self.name = self.path = str(parsed.database)
            # Customers' names are nobody else's business; SQLite gives its side files the mode of the first.
            with suppress(OSError):
                os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        else:
            self.name = parsed.render_as_string(hide_password=True)
            options = {
                "pool_pre_ping": True,
                "connect_args": {"connect_timeout": 5, "options": _POSTGRESQL_OPTIONS},
            }
        self._engine = create_engine(parsed, **options)
        if self.path is not None:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)

    @contextmanager
    def transaction(self, *, writes: bool = False, snapshot: bool = False) -> Iterator[Connection]:
        """Opens a transaction for the block, and commits at its end unless the block raises.

        Args:
            writes: Whether it writes.
            snapshot: Whether all it reads must be of one moment; SQLite always does so.

        Yields:
            The connection.

        Raises:
            StoreError: If the store cannot be used.
        """
        options: dict[str, Any] = {_WRITES: writes}
        if snapshot and self.path is None:
            options["isolation_level"] = "REPEATABLE READ"
        self._check_file()
        try:
            with self._engine.connect().execution_options(**options) as connection, connection.begin():
                if snapshot and self.path is None and not writes:
                    _READ_AT_LEISURE.change(connection, {})
                yield connection
        except SQLAlchemyError as error:
            raise self._failure(error) from None
        if writes:
            # What went into a file that is gone is lost, and nobody may rely on it.
            self._check_file()

    def writer(self) -> "Writer":
        """Returns what writes in one transaction after another, on a connection of its own."""
        return Writer(self, self._engine)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Opens a connection for the statements of `keylock.store.raw_sql` that read, each of them by itself.

        They need not be of one moment, which spares a transaction; each sees all that was committed before it began.

        Yields:
            The connection.

        Raises:
            StoreError: If the store cannot be used.
        """
        self._check_file()
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise self._failure(error) from None

    @contextmanager
    def reading_at_once(self) -> Iterator[Connection]:
        """Opens what `reading` does where no statement has to wait, neither for a network nor for other programs.

        To be used in one thread, on a connection that stays open.

        Yields:
            The connection.

        Raises:
            BlockingIOError: If it would have to wait, as it always does for a database server.
            StoreReplacedError: If the store is not the file that was opened.
        """
        self._check_file()
        if self.path is None:
            raise BlockingIOError
        try:
            if self._impatient is None:
                self._impatient = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                self._impatient.detach()
                _DO_NOT_WAIT_FOR_OTHERS.change(self._impatient, {})
            yield self._impatient
        except SQLAlchemyError:
            self._close_impatient()
            # Whoever asks again and waits is told what is wrong.
            raise BlockingIOError from None

    def _close_impatient(self) -> None:
        connection, self._impatient = self._impatient, None
        if connection is not None:
            with suppress(SQLAlchemyError):
                connection.close()

    def disown(self, why: str) -> StoreReplacedError:
        """Ends the use of a store that is not the one it was: from now on every call fails, until it is opened anew.

        Args:
            why: What it is, in words that follow its name.

        Returns:
            The error that every call raises, to be raised by the caller.
        """
        self._replaced = StoreReplacedError(
            f"the store {self.name} {why}: stop its servers, run `keylock store restore`, and start them again"
        )
        return self._replaced

    def _check_file(self) -> None:
        """Raises `StoreReplacedError` where the path leads to another file than the one that was opened."""
        if self._replaced is None and self._file is not None:
            found = self._look()
            if found != self._file:
                self.disown("was removed while it was in use" if found is None else "was replaced by another file")
        if self._replaced is not None:
            raise self._replaced

    def _look(self) -> tuple[int, int] | None:
        """Returns device and inode of the file; None where there is none, or the store is not a file."""
        try:
            found = None if self.path is None else os.stat(self.path)
        except OSError:
            return None
        return None if found is None else (found.st_dev, found.st_ino)

    def migrate(self) -> tuple[str | None, str]:
        """Brings the store to the schema of this keylock.

        Returns:
            The revision it had, None where it was empty, and the one it has.

        Raises:
            StoreError: If a newer keylock made it, or it cannot be used.
        """
        with self.transaction(writes=True) as connection:
            return migrations.upgrade(connection, name=self.name)

    def check(self) -> dict[str, object]:
        """Checks that the store is whole, and counts its rows.

        Returns:
            The database, the schema, and the rows of each table.

        Raises:
            StoreError: If it is damaged or cannot be used.
        """
        with self.transaction(snapshot=True) as connection:
            migrations.check(connection, name=self.name)
            if self.path is not None:
                problem = connection.exec_driver_sql("PRAGMA integrity_check").scalars().first()
                if problem != "ok":
                    raise StoreError(f"the store {self.name} is damaged ({problem}): restore it from a backup")
            counts = {
                table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                for table in metadata.sorted_tables
            }
        return {"database": self._engine.dialect.name, "schema": migrations.HEAD, **counts}

    def close(self) -> None:
        """Closes all connections."""
        self._close_impatient()
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _failure(self, error: SQLAlchemyError) -> StoreError:
        # The driver's own words name the trouble; SQLAlchemy's would repeat the statement and its values.
        words = str(getattr(error, "orig", None) or type(error).__name__).strip()
        why = words.splitlines()[0] if words else type(error).__name__
        advice = (
            "check that the file is a keylock license store and that it and its folder can be written"
            if self.path is not None
            else "check the address, the user and that the database is running"
        )
        passing = isinstance(error, (OperationalError, InterfaceError, TimeoutError))
        return StoreError(f"cannot use the license store {self.name} ({why}): {advice}", passing=passing)


class Writer:
    """Runs transactions that write, one after another, on a connection that stays open between them. For one thread."""

    def __init__(self, database: Database, engine: Engine) -> None:
        """Made by `Database.writer`; connects with the first transaction."""
        self._database, self._engine = database, engine
        self._connection: Connection | None = None
        self._waits = True

    @contextmanager
    def transaction(self, *, lasting: bool) -> Iterator[Connection]:
        """Opens a transaction for the block, and commits at its end unless the block raises.

        Args:
            lasting: Whether what is committed must survive a power cut, which takes a wait for the disk. What does not
                have to is there for everybody all the same, whichever process dies; a power cut may take it, and then
                takes it whole and nothing that lasts.

        Yields:
            The connection.

        Raises:
            StoreError: If the store cannot be used. The next transaction connects anew.
        """
        self._database._check_file()
        try:
            connection = self._connected()
            if self._database.path is not None and lasting != self._waits:
                _WAIT_FOR_DISK[lasting].change(connection, {})
                self._waits = lasting
            with connection.begin():
                if self._database.path is None and not lasting:
                    _DO_NOT_WAIT.change(connection, {})
                yield connection
        except SQLAlchemyError as error:
            self.close()
            raise self._database._failure(error) from None
        except BaseException:
            self.close()
            raise
        self._database._check_file()

    def close(self) -> None:
        """Closes the connection; the next transaction opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError):
                connection.close()

    def _connected(self) -> Connection:
        if self._connection is None:
            connection = self._engine.connect().execution_options(**{_WRITES: True})
            # Whether it waits for the disk is nobody else's business, so it does not go back among the others.
            connection.detach()
            self._connection, self._waits = connection, True
        return self._connection


def sqlite_path(url: str) -> Path | None:
    """Returns the file of a store, which need not be there; None for a PostgreSQL database.

    Args:
        url: As `Database` takes it.

    Raises:
        StoreError: If it is neither.
    """
    parsed = _parse(url)
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreError(f"the license store must be given as {_FORMS}") from None
    backend = parsed.get_backend_name()
    # A service of libpq's file names the database, and what else is needed to reach it.
    if backend in ("postgresql", "postgres") and (parsed.database or parsed.query.get("service")):
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise StoreError(f"the license store must be a file or a PostgreSQL database, given as {_FORMS}")
    return parsed


def _prepare_sqlite(connection: sqlite3.Connection, record: object) -> None:
    """Gives SQLAlchemy the say over transactions, and lets readers and one writer work side by side."""
    connection.isolation_level = None
    # Before anything that may wait for another process.
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous = FULL")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switches to a write-ahead log. Of several processes that do so at once, SQLite refuses some without waiting."""
    last = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= last:
                raise
            time.sleep(_PAUSE_S)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later fails under load, whatever the timeout; an immediate one waits.
    writes = connection.get_execution_options().get(_WRITES, False)
    (_BEGIN_WRITING if writes else _BEGIN).change(connection, {})
