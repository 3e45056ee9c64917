"""Putting a store back from a backup, so that nothing which was taken from customers is given back to them.

A backup knows nothing of what happened after it. What it must not forget is what closes doors: revocations,
suspensions, cut-off times, revoked tokens and the terms of renewals, which may end earlier or allow less, are carried
over from the store that is replaced, where that can still be read. Charges are not: they are counted for the vendor,
and receipts of them still hold. Servers that run notice that the store has a new generation
(`keylock.store.identity`).
"""

import os
import secrets
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from sqlalchemy import Connection

from keylock.errors import InputError, StoreError
from keylock.licensing import License
from keylock.store.database import Database
from keylock.store.identity import RUNNING, servers_running
from keylock.store.raw_sql import Statement

__all__ = ["Restored", "adopt", "restore"]

_SIDES: Final = ("", "-wal", "-shm")

_NEW_GENERATION: Final = Statement("UPDATE store_identity SET generation = :generation WHERE id = 1")
_NO_SERVERS: Final = Statement("DELETE FROM server_marks")
_CLOSED: Final = Statement(
    """
    SELECT id, revoked_at, revoked_why, suspended_at, suspended_why, suspended_unpaid, refuse_before FROM licenses
    WHERE revoked_at IS NOT NULL OR suspended_at IS NOT NULL OR refuse_before IS NOT NULL
    """
)
_CLOSE: Final = Statement(
    """
    UPDATE licenses
    SET revoked_at = coalesce(revoked_at, :revoked_at),
        revoked_why = CASE WHEN revoked_at IS NULL THEN :revoked_why ELSE revoked_why END,
        suspended_at = coalesce(suspended_at, :suspended_at),
        suspended_why = CASE WHEN suspended_at IS NULL THEN :suspended_why ELSE suspended_why END,
        suspended_unpaid = CASE WHEN suspended_at IS NULL THEN :suspended_unpaid ELSE suspended_unpaid END,
        refuse_before = nullif(max(coalesce(refuse_before, 0), coalesce(:refuse_before, 0)), 0)
    WHERE id = :id
    """
)
_TERMS: Final = Statement("SELECT id, customer, issuer, issued_at, claims FROM licenses")
# Every issue of a license has a later time than the one before.
_RENEW: Final = Statement(
    """
    UPDATE licenses SET customer = :customer, issuer = :issuer, issued_at = :issued_at, claims = :claims
    WHERE id = :id AND issued_at < :issued_at
    """
)
_TOKENS: Final = Statement("SELECT token_id, revoked_at FROM revoked_tokens")
_REVOKE_TOKEN: Final = Statement(
    "INSERT INTO revoked_tokens (token_id, revoked_at) VALUES (:token_id, :revoked_at) ON CONFLICT DO NOTHING"
)
_CHARGED: Final = Statement("SELECT license_id, request_id, units FROM ledger WHERE charged_at IS NOT NULL")


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of a store.

    Attributes:
        name: The store.
        kept: Where the store lies that was replaced; None where there was none.
        readable: Whether that one could be read, so that what it had closed stays closed.
        closed: Licenses whose revocation, suspension or cut-off time was carried over.
        renewed: Licenses whose terms were carried over, because they were renewed after the backup.
        tokens: Revoked access tokens that were carried over.
        lost_licenses: Licenses that were issued after the backup, and are not in the store any more.
        lost_charges: Charges that were made after the backup, and are not in the store any more.
        lost_units: Their units.
    """

    name: str
    kept: Path | None = None
    readable: bool = True
    closed: int = 0
    renewed: int = 0
    tokens: int = 0
    lost_licenses: int = 0
    lost_charges: int = 0
    lost_units: int = 0


@dataclass(frozen=True, slots=True)
class _Known:
    """What the store says that is replaced."""

    closed: tuple[tuple[object, ...], ...]
    tokens: tuple[tuple[object, ...], ...]
    charges: dict[tuple[str, str], int]
    terms: dict[str, tuple[object, ...]]


def restore(path: Path, backup: Path, *, now: datetime) -> Restored:
    """Puts a backup in the place of a SQLite store.

    1. The backup is whole and a store of this keylock, or of an earlier one.
    2. No server uses the store now.
    3. A copy of the backup gets a new generation, and what was closed since.
    4. The store is moved aside and the copy takes its place.

    Args:
        path: The store; it may be missing.
        backup: What `keylock store backup` wrote.
        now: The time, with its zone.

    Raises:
        InputError: If the backup is the store itself, is not a store, or cannot be read, or a server uses the store.
        StoreError: If the folder cannot be written.
    """
    if path.exists() and backup.exists() and path.samefile(backup):
        raise InputError(f"{backup} is the store itself: name a backup of it")
    copy = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        _copy(backup, copy)
        known = _read(path, now=now) if path.exists() else None
        result = _prepare(copy, known)
        kept = _move_aside(path, now) if path.exists() else None
        os.replace(copy, path)
    except OSError as error:
        raise StoreError(f"cannot write the store {path} ({error.strerror}): check the disk and the folder") from None
    finally:
        for side in _SIDES:
            copy.with_name(copy.name + side).unlink(missing_ok=True)
    return replace(result, name=str(path), kept=kept, readable=known is not None or kept is None)


def adopt(database: Database, *, now: datetime) -> Restored:
    """Gives a database that its own tools have put back a new generation; for PostgreSQL, after `pg_restore`.

    Args:
        database: The store.
        now: The time, with its zone.

    Raises:
        InputError: If a server uses the store.
        StoreError: If it cannot be used.
    """
    with database.transaction(writes=True) as connection:
        _check_unused(connection, database.name, now)
        _new_generation(connection)
    return Restored(database.name, readable=False)


def _copy(backup: Path, copy: Path) -> None:
    """Copies a backup into a new file of mode 0600 that nobody waits for."""
    if not backup.is_file():
        raise InputError(f"there is no backup {backup}: name a file that `keylock store backup` wrote")
    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        # A backup in a folder that cannot be written has no place for the files of a write-ahead log.
        mode = "mode=ro" if backup.with_name(f"{backup.name}-wal").exists() else "immutable=1"
        with (
            closing(sqlite3.connect(f"{backup.resolve().as_uri()}?{mode}", uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            problem = target.execute("PRAGMA integrity_check").fetchone()[0]
            tables = {name for (name,) in target.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise InputError(f"the backup {backup} cannot be read ({error}): name another") from None
    if problem != "ok":
        raise InputError(f"the backup {backup} is damaged ({problem}): name another")
    if "licenses" not in tables:
        raise InputError(f"{backup} is not a keylock license store: name a file that `keylock store backup` wrote")


def _read(path: Path, *, now: datetime) -> _Known | None:
    """Returns what the store says that is replaced; None where it cannot be read."""
    with suppress(StoreError), Database.of_any_schema(f"sqlite:///{path}") as database:
        database.migrate()
        with database.transaction(snapshot=True) as connection:
            _check_unused(connection, str(path), now)
            return _Known(
                closed=tuple(_CLOSED.rows(connection, {})),
                tokens=tuple(_TOKENS.rows(connection, {})),
                charges={(row[0], row[1]): row[2] for row in _CHARGED.rows(connection, {})},
                terms={row[0]: row for row in _TERMS.rows(connection, {}) if _is_license(row[-1])},
            )
    return None


def _check_unused(connection: Connection, name: str, now: datetime) -> None:
    used = servers_running(connection, now)
    if used:
        raise InputError(
            f"{used} {'server uses' if used == 1 else 'servers use'} the store {name}: stop every server first; one "
            f"that was killed is forgotten after {RUNNING.total_seconds():.0f} seconds"
        )


def _prepare(copy: Path, known: _Known | None) -> Restored:
    """Brings a copy to the newest schema, names its generation, and closes what was closed."""
    with Database.of_any_schema(f"sqlite:///{copy}") as database:
        database.migrate()
        with database.transaction(writes=True) as connection:
            _new_generation(connection)
            result = Restored(str(copy)) if known is None else _carry_over(connection, known)
    with closing(sqlite3.connect(copy)) as connection:
        # One file, whole by itself, so that moving it is all there is to do.
        connection.execute("PRAGMA journal_mode = DELETE")
    return result


def _carry_over(connection: Connection, known: _Known) -> Restored:
    issued = {row[0] for row in _TERMS.rows(connection, {})}
    charged = {(row[0], row[1]) for row in _CHARGED.rows(connection, {})}
    names = ("id", "revoked_at", "revoked_why", "suspended_at", "suspended_why", "suspended_unpaid", "refuse_before")
    before = set(_CLOSED.rows(connection, {}))
    for row in known.closed:
        _CLOSE.change(connection, dict(zip(names, row, strict=True)))
    closed = len(set(_CLOSED.rows(connection, {})) - before)
    terms = ("id", "customer", "issuer", "issued_at", "claims")
    renewed = sum(_RENEW.change(connection, dict(zip(terms, row, strict=True))) for row in known.terms.values())
    revoked = {row[0] for row in _TOKENS.rows(connection, {})}
    for token_id, revoked_at in known.tokens:
        _REVOKE_TOKEN.change(connection, {"token_id": token_id, "revoked_at": revoked_at})
    lost = {key: units for key, units in known.charges.items() if key not in charged}
    return Restored(
        "",
        closed=closed,
        renewed=renewed,
        tokens=len({row[0] for row in known.tokens} - revoked),
        lost_licenses=len(known.terms.keys() - issued),
        lost_charges=len(lost),
        lost_units=sum(lost.values()),
    )


def _is_license(claims: str) -> bool:
    """Tells whether terms can be read: what is damaged is not carried over."""
    try:
        License.model_validate_json(claims)
    except ValidationError:
        return False
    return True


def _new_generation(connection: Connection) -> None:
    _NEW_GENERATION.change(connection, {"generation": secrets.token_hex(8)})
    _NO_SERVERS.change(connection, {})


def _move_aside(path: Path, now: datetime) -> Path:
    kept = path.with_name(f"{path.name}.replaced-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}")
    for side in reversed(_SIDES):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{side}", f"{kept}{side}")
    return kept
