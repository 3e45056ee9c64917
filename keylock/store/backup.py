"""Copies of a store that are good although it is in use."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from keylock.errors import InputError, StoreError
from keylock.store.database import Database

__all__ = ["back_up"]


def back_up(database: Database, path: Path) -> None:
    """Copies a SQLite store into a new file of mode 0600, as it is at one moment, while servers go on using it.

    Args:
        database: The store.
        path: The new file.

    Raises:
        InputError: If the file exists or cannot be made, or the store is no SQLite file: PostgreSQL has `pg_dump`.
        StoreError: If the store cannot be read.
    """
    if database.path is None:
        raise InputError(f"{database.name} is a PostgreSQL database: back it up with pg_dump")
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        raise InputError(f"{path} exists and is not overwritten: choose another path") from None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    try:
        with closing(sqlite3.connect(database.path)) as source, closing(sqlite3.connect(path)) as target:
            source.backup(target)
            problem = target.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.Error as error:
        path.unlink(missing_ok=True)
        raise StoreError(f"cannot back up the store {database.name} ({error}): check the disk and the file") from None
    if problem != "ok":
        raise StoreError(f"the store {database.name} is damaged ({problem}): restore it from an earlier backup")
