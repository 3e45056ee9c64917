"""Statements that every charge runs, handed to the driver as they stand.

SQLAlchemy's way from a statement to its rows takes several times as long as SQLite takes to run it. So what is run for
each request is written once, in the two spellings of the drivers' parameters, and goes straight to the connection that
SQLAlchemy's transaction has open. Both drivers keep such statements prepared. What the driver raises comes out as it
would from SQLAlchemy.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

__all__ = ["Statement"]

_PARAMETER: Final = re.compile(r":([a-z_]+)")


class Statement:
    """One statement, with parameters written as `:name`; neither colons nor percent signs may stand in it otherwise."""

    def __init__(self, text: str) -> None:
        """Writes it down in both spellings."""
        self._spellings = {"named": text, "qmark": text, "pyformat": _PARAMETER.sub(r"%(\1)s", text)}

    def rows(self, connection: Connection, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
        """Runs it and returns its rows.

        Args:
            connection: A connection inside a transaction.
            values: Of its parameters.

        Raises:
            DBAPIError: Whatever the driver raises.
        """
        return list(self._run(connection, values).fetchall())

    def row(self, connection: Connection, values: Mapping[str, object]) -> tuple[Any, ...] | None:
        """Runs it and returns its row, or None where it has none; it must not have several.

        Args:
            connection: A connection inside a transaction.
            values: Of its parameters.

        Raises:
            DBAPIError: Whatever the driver raises.
        """
        found = self.rows(connection, values)
        return found[0] if found else None

    def change(self, connection: Connection, values: Mapping[str, object]) -> int:
        """Runs one that has no rows, and returns how many rows of the database it changed.

        Args:
            connection: A connection inside a transaction.
            values: Of its parameters.

        Raises:
            DBAPIError: Whatever the driver raises.
        """
        return int(self._run(connection, values).rowcount)

    def change_all(self, connection: Connection, values: Sequence[Mapping[str, object]]) -> None:
        """Runs one that has no rows once for each of some values.

        Args:
            connection: A connection inside a transaction.
            values: Of its parameters, for each time.

        Raises:
            DBAPIError: Whatever the driver raises.
        """
        self._run(connection, values, many=True)

    def _run(self, connection: Connection, values: Any, *, many: bool = False) -> Any:  # noqa: ANN401
        text = self._spellings[connection.dialect.paramstyle]
        cursor = connection.connection.cursor()
        try:
            if many:
                cursor.executemany(text, values)
            else:
                cursor.execute(text, values)
        except connection.dialect.loaded_dbapi.Error as error:
            raise DBAPIError.instance(text, None, error, connection.dialect.loaded_dbapi.Error) from error
        return cursor
