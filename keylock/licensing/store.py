"""The store: which licenses were issued, and which of them were revoked. Needs the `server` extra.

SQLite in WAL mode. Every change is one `BEGIN IMMEDIATE` transaction, so that several processes may write and many may
read. Tokens are not kept: who reads the store cannot present anybody's license.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    Row,
    Table,
    Text,
    create_engine,
    event,
    insert,
    make_url,
    select,
    update,
)
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from keylock.errors import LicenseError, LicenseReason, ServiceError
from keylock.licensing.claims import License, StoredLicense

__all__ = ["LicenseStore"]

_SCHEMA_VERSION: Final = 1
_BUSY_TIMEOUT_MS: Final = 10_000
_WRITES: Final = "keylock_writes"

_metadata = MetaData()
_licenses = Table(
    "licenses",
    _metadata,
    Column("id", Text, primary_key=True),
    Column("customer", Text, nullable=False, index=True),
    Column("issuer", Text, nullable=False),
    Column("issued_at", Integer, nullable=False),
    Column("claims", Text, nullable=False),
    Column("revoked_at", Integer),
    Column("revoked_why", Text, nullable=False, server_default=""),
)


class LicenseStore:
    """The licenses of one vendor. Its methods may be called from several threads and processes."""

    def __init__(self, url: str) -> None:
        """Opens a store and creates it where there is none.

        Args:
            url: `sqlite:///` and the path of the file, for example `Home.licenses_url`.

        Raises:
            ServiceError: If it cannot be opened, or a newer keylock made it.
        """
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise ServiceError("the license store must be given as sqlite:///PATH") from None
        if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
            raise ServiceError("the license store must be a file, given as sqlite:///PATH")
        self._name = str(parsed.database)
        self._engine = create_engine(parsed)
        # Customers' names are nobody else's business; SQLite gives its side files the mode of the first.
        with suppress(OSError):
            os.close(os.open(self._name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        event.listen(self._engine, "connect", _prepare_connection)
        event.listen(self._engine, "begin", _begin)
        with self._transaction(writes=True) as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if version > _SCHEMA_VERSION:
                raise ServiceError(f"a newer keylock made the license store {self._name}: upgrade keylock")
            if version < _SCHEMA_VERSION:
                _metadata.create_all(connection)
                connection.exec_driver_sql(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def add(self, license: License, *, issuer: str) -> None:
        """Records a license.

        Args:
            license: What was granted.
            issuer: Id of the key that signed it.

        Raises:
            ServiceError: If its id is taken, or the store cannot be used.
        """
        row = {
            "id": license.id,
            "customer": license.customer,
            "issuer": issuer,
            "issued_at": int(license.issued_at.timestamp()),
            "claims": license.model_dump_json(),
        }
        with self._transaction(writes=True) as connection:
            try:
                connection.execute(insert(_licenses).values(row))
            except IntegrityError:
                raise ServiceError(f"the license {license.id} is in the store already") from None

    def get(self, license_id: str) -> StoredLicense:
        """Returns a license.

        Raises:
            LicenseError: If it is not in the store, with the reason `UNKNOWN`.
            ServiceError: If the store cannot be used.
        """
        with self._transaction() as connection:
            row = connection.execute(select(_licenses).where(_licenses.c.id == license_id)).one_or_none()
        if row is None:
            raise _unknown(license_id)
        return _from_row(row)

    def list(self, *, customer: str | None = None) -> tuple[StoredLicense, ...]:
        """Returns all licenses, the oldest first.

        Args:
            customer: Whose; everybody's where None.

        Raises:
            ServiceError: If the store cannot be used.
        """
        query = select(_licenses).order_by(_licenses.c.issued_at, _licenses.c.id)
        if customer is not None:
            query = query.where(_licenses.c.customer == customer)
        with self._transaction() as connection:
            return tuple(_from_row(row) for row in connection.execute(query))

    def revoke(self, license_id: str, *, at: datetime, why: str = "") -> StoredLicense:
        """Revokes a license for good; one that was revoked before stays as it is.

        Args:
            license_id: Which.
            at: The time, with its zone.
            why: A note for the vendor; never sent to the customer.

        Returns:
            The license as it is now.

        Raises:
            LicenseError: If it is not in the store, with the reason `UNKNOWN`.
            ServiceError: If the store cannot be used.
        """
        change = (
            update(_licenses)
            .where(_licenses.c.id == license_id, _licenses.c.revoked_at.is_(None))
            .values(revoked_at=int(at.timestamp()), revoked_why=why)
        )
        with self._transaction(writes=True) as connection:
            connection.execute(change)
        return self.get(license_id)

    def is_revoked(self, license_id: str) -> bool:
        """Tells whether a license was revoked; one that is not in the store was not.

        Raises:
            ServiceError: If the store cannot be used.
        """
        query = select(_licenses.c.revoked_at).where(_licenses.c.id == license_id)
        with self._transaction() as connection:
            return connection.execute(query).scalar_one_or_none() is not None

    def check(self, license_id: str) -> None:
        """Returns when a license was issued here and not revoked.

        Raises:
            LicenseError: If it was not, with the reason `UNKNOWN` or `REVOKED`.
            ServiceError: If the store cannot be used.
        """
        stored = self.get(license_id)
        if stored.revoked_at is not None:
            raise LicenseError(LicenseReason.REVOKED, f"the license {license_id} was revoked: ask the vendor")

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self, *, writes: bool = False) -> Iterator[Connection]:
        try:
            with self._engine.connect().execution_options(**{_WRITES: writes}) as connection, connection.begin():
                yield connection
        except SQLAlchemyError as error:
            # The driver's own words name the trouble; SQLAlchemy's would repeat the statement and its values.
            why = str(getattr(error, "orig", None) or type(error).__name__)
            raise ServiceError(
                f"cannot use the license store {self._name} ({why}): check that the file is a keylock license store "
                "and that it and its folder can be written"
            ) from None


def _prepare_connection(connection: sqlite3.Connection, record: object) -> None:
    """Gives SQLAlchemy the say over transactions, and lets readers and one writer work side by side."""
    connection.isolation_level = None
    # Before anything that may wait for another process.
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _begin(connection: Connection) -> None:
    # A transaction that reads first and writes later fails under load, whatever the timeout; an immediate one waits.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _from_row(row: Row[Any]) -> StoredLicense:
    revoked_at = None if row.revoked_at is None else datetime.fromtimestamp(row.revoked_at, UTC)
    license = License.model_validate_json(row.claims)
    return StoredLicense(license=license, issuer=row.issuer, revoked_at=revoked_at, revoked_why=row.revoked_why)


def _unknown(license_id: str) -> LicenseError:
    return LicenseError(
        LicenseReason.UNKNOWN,
        f"the license {license_id} is not in the store of licenses issued: check its id, or ask the vendor",
    )
