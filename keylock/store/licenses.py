"""Which licenses were issued, and what was done to them since: suspended, renewed, cut off, revoked."""

import re
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from pydantic import ValidationError
from sqlalchemy import Row, bindparam, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from keylock.errors import InputError, LicenseError, LicenseReason, StoreError
from keylock.licensing import License, StoredLicense
from keylock.store.database import Database
from keylock.store.raw_sql import Statement
from keylock.store.schema import LICENSES

__all__ = ["LicenseStore"]

_TOKEN_ID: Final = re.compile(r"tok_\w{1,40}", re.ASCII)
# In words that both databases understand, because SQLAlchemy's own for PostgreSQL take long to import.
_REVOKE_TOKEN: Final = text(
    "INSERT INTO revoked_tokens (token_id, revoked_at) VALUES (:token_id, :revoked_at) ON CONFLICT DO NOTHING"
)
_BY_ID: Final = select(LICENSES).where(LICENSES.c.id == bindparam("license_id"))


class _License(NamedTuple):
    id: str
    customer: str
    issuer: str
    issued_at: int
    claims: str
    revoked_at: int | None
    revoked_why: str
    suspended_at: int | None
    suspended_why: str
    suspended_unpaid: int
    refuse_before: int | None


# What every call asks.
_CHECK: Final = Statement(f"SELECT {', '.join(_License._fields)} FROM licenses WHERE id = :id")  # noqa: S608 - constants
_TOKEN: Final = Statement("SELECT token_id FROM revoked_tokens WHERE token_id = :id")


class LicenseStore:
    """The licenses of one vendor. Its methods may be called from several threads and processes.

    Attributes:
        database: Where they are kept.
    """

    def __init__(self, url: str) -> None:
        """Opens a store and creates it where there is none.

        Args:
            url: `sqlite:///` and the path of the file, for example `Home.licenses_url`, or the address of a PostgreSQL
                database.

        Raises:
            StoreError: If it cannot be opened, or has the schema of another keylock.
        """
        self.database = Database(url)

    def add(self, license: License, *, issuer: str) -> None:
        """Records a license.

        Args:
            license: What was granted.
            issuer: Id of the key that signed it.

        Raises:
            StoreError: If its id is taken, or the store cannot be used.
        """
        with self.database.transaction(writes=True) as connection:
            try:
                connection.execute(insert(LICENSES).values(id=license.id, **_columns(license, issuer)))
            except IntegrityError:
                raise StoreError(f"the license {license.id} is in the store already") from None

    def renew(self, license: License, *, issuer: str) -> StoredLicense:
        """Replaces what a license grants; what was done to it, and what it used, stay.

        Args:
            license: What it grants from now on, under the id it has.
            issuer: Id of the key that signed it.

        Returns:
            The license as it is now.

        Raises:
            LicenseError: If it is not in the store, with the reason `UNKNOWN`, or was revoked, with `REVOKED`.
            StoreError: If the store cannot be used.
        """
        change = (
            update(LICENSES)
            .where(LICENSES.c.id == license.id, LICENSES.c.revoked_at.is_(None))
            .values(**_columns(license, issuer))
        )
        with self.database.transaction(writes=True) as connection:
            changed = connection.execute(change).rowcount
        stored = self.get(license.id)
        if not changed:
            raise LicenseError(LicenseReason.REVOKED, f"the license {license.id} was revoked: issue a new one")
        return stored

    def get(self, license_id: str) -> StoredLicense:
        """Returns a license.

        Raises:
            LicenseError: If it is not in the store, with the reason `UNKNOWN`.
            StoreError: If the store cannot be used.
        """
        with self.database.transaction() as connection:
            row = connection.execute(_BY_ID, {"license_id": license_id}).one_or_none()
        if row is None:
            raise _unknown(license_id)
        return _from_row(row)

    def list(self, *, customer: str | None = None) -> tuple[StoredLicense, ...]:
        """Returns all licenses, the oldest first.

        Args:
            customer: Whose; everybody's where None.

        Raises:
            StoreError: If the store cannot be used.
        """
        query = select(LICENSES).order_by(LICENSES.c.issued_at, LICENSES.c.id)
        if customer is not None:
            query = query.where(LICENSES.c.customer == customer)
        with self.database.transaction() as connection:
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
            StoreError: If the store cannot be used.
        """
        return self._change(license_id, only_if="revoked_at", revoked_at=_seconds(at), revoked_why=why)

    def suspend(self, license_id: str, *, at: datetime, why: str = "", unpaid: bool = False) -> StoredLicense:
        """Suspends a license until it is reinstated; one that is suspended stays as it is.

        Args:
            license_id: Which.
            at: The time, with its zone.
            why: A note for the vendor; never sent to the customer.
            unpaid: Whether it is for non-payment, which disclosures outlive for as long as the license says.

        Returns:
            The license as it is now.

        Raises:
            LicenseError: If it is not in the store, with the reason `UNKNOWN`.
            StoreError: If the store cannot be used.
        """
        return self._change(
            license_id,
            only_if="suspended_at",
            suspended_at=_seconds(at),
            suspended_why=why,
            suspended_unpaid=int(unpaid),
        )

    def reinstate(self, license_id: str) -> StoredLicense:
        """Ends a suspension. A revoked license stays revoked.

        Returns:
            The license as it is now.

        Raises:
            LicenseError: If it is not in the store, with the reason `UNKNOWN`.
            StoreError: If the store cannot be used.
        """
        return self._change(license_id, suspended_at=None, suspended_why="", suspended_unpaid=0)

    def refuse_before(self, cutoff: datetime, *, license_id: str | None = None) -> int:
        """Revokes every token that was issued before a time: license files and access tokens alike.

        A license that is renewed afterwards has a new file, and that one is good. A cut-off never moves back.

        Args:
            cutoff: The time, with its zone.
            license_id: The license whose tokens are meant; those of all licenses when None.

        Returns:
            How many licenses it concerns.

        Raises:
            LicenseError: If there is no such license, with the reason `UNKNOWN`.
            StoreError: If the store cannot be used.
        """
        column, seconds = LICENSES.c.refuse_before, _seconds(cutoff)
        change = update(LICENSES).where(column.is_(None) | (column < seconds)).values(refuse_before=seconds)
        if license_id is not None:
            self.get(license_id)
            change = change.where(LICENSES.c.id == license_id)
        with self.database.transaction(writes=True) as connection:
            return connection.execute(change).rowcount

    def revoke_token(self, token_id: str, *, at: datetime) -> None:
        """Revokes one access token, by the id in it; that of a license has other means.

        Args:
            token_id: Which; it need not be known to the store.
            at: The time, with its zone.

        Raises:
            InputError: If it is no id, for example the token itself, of which nothing would be revoked.
            StoreError: If the store cannot be used.
        """
        if not _TOKEN_ID.fullmatch(token_id):
            raise InputError("this is no id of an access token: give its jti, which begins with tok_")
        with self.database.transaction(writes=True) as connection:
            connection.execute(_REVOKE_TOKEN, {"token_id": token_id, "revoked_at": _seconds(at)})

    def check(
        self,
        license_id: str,
        *,
        issued_at: datetime | None = None,
        token_id: str | None = None,
        disclosing_at: datetime | None = None,
    ) -> StoredLicense:
        """Returns a license that was issued here and is neither revoked nor suspended.

        Args:
            license_id: The license presented.
            issued_at: When the token presented was issued; None where no token was.
            token_id: Id of the access token presented; None where the license itself was.
            disclosing_at: When a disclosure is asked for, which outlives a suspension for non-payment for a while; None
                for everything else.

        Returns:
            The license as the store has it, which may have been renewed since the token was issued.

        Raises:
            LicenseError: If it is not good, with the reason `UNKNOWN`, `REVOKED` or `SUSPENDED`.
            StoreError: If the store cannot be used.
        """
        with self.database.reading() as connection:
            found = _CHECK.row(connection, {"id": license_id})
            gone = token_id is not None and _TOKEN.row(connection, {"id": token_id}) is not None
        return _checked(license_id, found, issued_at=issued_at, gone=gone, disclosing_at=disclosing_at)

    def check_at_once(self, license_id: str, *, issued_at: datetime) -> StoredLicense:
        """Does what `check` does for a license that is presented itself, where that takes no wait; for one thread.

        Raises:
            BlockingIOError: If it would have to wait.
            LicenseError: As `check`.
            StoreError: As `check`.
        """
        with self.database.reading_at_once() as connection:
            found = _CHECK.row(connection, {"id": license_id})
        return _checked(license_id, found, issued_at=issued_at, gone=False)

    def close(self) -> None:
        """Closes all connections."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _change(self, license_id: str, *, only_if: str | None = None, **values: object) -> StoredLicense:
        change = update(LICENSES).where(LICENSES.c.id == license_id).values(**values)
        if only_if is not None:
            change = change.where(LICENSES.c[only_if].is_(None))
        with self.database.transaction(writes=True) as connection:
            connection.execute(change)
        return self.get(license_id)


def _checked(
    license_id: str,
    found: tuple[Any, ...] | None,
    *,
    issued_at: datetime | None,
    gone: bool,
    disclosing_at: datetime | None = None,
) -> StoredLicense:
    if found is None:
        raise _unknown(license_id)
    row = _License(*found)
    if row.revoked_at is not None:
        raise LicenseError(LicenseReason.REVOKED, f"the license {license_id} was revoked: ask the vendor")
    too_old = issued_at is not None and row.refuse_before is not None and issued_at.timestamp() < row.refuse_before
    if gone or too_old:
        raise LicenseError(
            LicenseReason.REVOKED, f"this token of the license {license_id} was revoked: ask the vendor for another"
        )
    stored = _from_row(row)
    if row.suspended_at is not None and (disclosing_at is None or not stored.discloses(disclosing_at)):
        raise LicenseError(LicenseReason.SUSPENDED, f"the license {license_id} is suspended: ask the vendor")
    return stored


def _columns(license: License, issuer: str) -> dict[str, object]:
    return {
        "customer": license.customer,
        "issuer": issuer,
        "issued_at": _seconds(license.issued_at),
        "claims": license.model_dump_json(),
    }


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _moment(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


@lru_cache(maxsize=4096)
def _parse(claims: str) -> License:
    return License.model_validate_json(claims)


def _from_row(row: _License | Row[Any]) -> StoredLicense:
    try:
        license = _parse(row.claims)
    except ValidationError:
        raise StoreError(
            f"the license {row.id} in the store was changed by hand or by a newer keylock: restore it from a backup"
        ) from None
    return StoredLicense(
        license=license,
        issuer=row.issuer,
        revoked_at=_moment(row.revoked_at),
        revoked_why=row.revoked_why,
        suspended_at=_moment(row.suspended_at),
        suspended_why=row.suspended_why,
        suspended_unpaid=bool(row.suspended_unpaid),
        refuse_before=_moment(row.refuse_before),
    )


def _unknown(license_id: str) -> LicenseError:
    return LicenseError(
        LicenseReason.UNKNOWN,
        f"the license {license_id} is not in the store of licenses issued: check its id, or ask the vendor",
    )
