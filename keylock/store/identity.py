"""Whether a store is still the one that a server began with.

A database that is put back from a backup looks like any other: it has the right tables, and revocations and charges
that are missing do not show. So every server writes a mark of its own into the store, a new random one each time it
looks. A store that holds another mark than the server wrote last is an earlier state of it, or another store. Nobody
else takes a mark away: a server may have slept for long, or its clock may be far behind. Beside the marks the store has
an id, made up once, and a generation, made up anew each time it is restored.
"""

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection

from keylock.errors import StoreError
from keylock.store import migrations
from keylock.store.database import Database
from keylock.store.raw_sql import Statement

__all__ = ["RUNNING", "Identity", "Presence", "identity_of", "servers_running"]

RUNNING: Final = timedelta(seconds=15)
"""For how long a server that did not look at its store again counts as one that runs."""

# Clocks of machines differ a little; a mark that is further ahead was made before the clock was set back.
_AHEAD: Final = timedelta(seconds=60)

_SCHEMA: Final = Statement("SELECT version_num FROM alembic_version")
_IDENTITY: Final = Statement("SELECT store_id, generation FROM store_identity WHERE id = 1")
_LOG_SIZE: Final = Statement("SELECT size FROM audit_head WHERE id = 1")
_ENTER: Final = Statement("INSERT INTO server_marks (server_id, mark, seen_at) VALUES (:server, :mark, :now)")
_CONFIRM: Final = Statement(
    "UPDATE server_marks SET mark = :mark, seen_at = :now WHERE server_id = :server AND mark IN (:last, :mark)"
)
_LEAVE: Final = Statement("DELETE FROM server_marks WHERE server_id = :server")
_SEEN: Final = Statement("SELECT count(*) FROM server_marks WHERE seen_at >= :since AND seen_at <= :until")


@dataclass(frozen=True, slots=True)
class Identity:
    """Names a store.

    Attributes:
        store_id: Made up when the store was made; its backups have it too.
        generation: Made up when the store was made or restored.
    """

    store_id: str
    generation: str


def identity_of(connection: Connection) -> Identity | None:
    """Returns the identity of a store; None where it has lost it.

    Args:
        connection: A connection inside a transaction.
    """
    found = _IDENTITY.row(connection, {})
    return None if found is None else Identity(*found)


def servers_running(connection: Connection, now: datetime) -> int:
    """Returns how many servers have looked at the store within `RUNNING` and did not take their leave.

    Args:
        connection: A connection inside a transaction.
        now: The time, with its zone.
    """
    values = {"since": int((now - RUNNING).timestamp()), "until": int((now + _AHEAD).timestamp())}
    [count] = _SEEN.row(connection, values) or (0,)
    return int(count)


class Presence:
    """One server's mark in its store. Used by one thread at a time.

    Once the store was found to be another one, the `Database` is of no more use to anybody (`Database.disown`).
    """

    def __init__(self, database: Database, *, now: Callable[[], datetime]) -> None:
        """Takes the store; nothing is written yet.

        Args:
            database: The store.
            now: The clock, in UTC.
        """
        self._database = database
        self._now = now
        self._server = ""
        self._known: Identity | None = None
        self._mark = self._tried = ""

    def confirm(self) -> None:
        """Writes a new mark where the last one stands: the store can be written, and is the one it was.

        Raises:
            StoreReplacedError: If it is another store, or an earlier state of this one.
            StoreError: If it cannot be used.
        """
        # Where the end of a transaction fails, the database may have taken it all the same. So what was tried is tried
        # again until it is known to stand there.
        self._tried = self._tried or secrets.token_hex(8)
        if self._known is None:
            self._server = secrets.token_hex(8)
        with self._database.transaction(writes=True) as connection:
            found = self._exchange(connection)
        if isinstance(found, str):
            raise self._database.disown(found)
        self._known, self._mark, self._tried = found, self._tried, ""

    def leave(self) -> None:
        """Takes the mark back; a store that cannot be used keeps it, until it is restored."""
        if self._known is None:
            return
        with suppress(StoreError), self._database.transaction(writes=True) as connection:
            _LEAVE.change(connection, {"server": self._server})

    def _exchange(self, connection: Connection) -> Identity | str:
        """Returns the store's identity, or what shows that it is another store, in words that follow its name."""
        schema = _SCHEMA.row(connection, {})
        if schema is None or schema[0] != migrations.HEAD:
            migrations.check(connection, name=self._database.name)
        identity = identity_of(connection)
        if identity is None:
            raise StoreError(f"the store {self._database.name} has lost its identity: restore it from a backup")
        if _LOG_SIZE.row(connection, {}) is None:
            raise StoreError(f"the audit log in {self._database.name} has lost its head: restore it from a backup")
        values = {"server": self._server, "mark": self._tried, "now": int(self._now().timestamp())}
        if self._known is None:
            _ENTER.change(connection, values)
        elif identity.store_id != self._known.store_id:
            return "is another store than this server began with"
        elif identity.generation != self._known.generation:
            return "was restored from a backup while this server used it"
        elif _CONFIRM.change(connection, {**values, "last": self._mark}) != 1:
            return "is an earlier state of the one this server began with"
        return identity
