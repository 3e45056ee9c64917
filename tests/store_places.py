"""Where a store under test lies: a SQLite file or a PostgreSQL database, made in a moment and put back likewise."""

import itertools
import shutil
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from keylock.store import Database
from keylock.store.backup import back_up
from keylock.store.restoring import Restored, adopt, restore
from keylock.store.schema import metadata

if TYPE_CHECKING:
    from postgresql_cluster import Cluster

TABLES = tuple(table.name for table in metadata.sorted_tables)


class SqlitePlace:
    """Stores as files in a folder; what was closed since a backup is carried over when it is put back."""

    carries_over = True
    backs_up_while_in_use = True

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, itertools.count()
        self.counted: Counter[str] = Counter()
        self._template = folder / "template.db"
        Database(f"sqlite:///{self._template}").close()

    def new(self) -> str:
        path = self._folder / f"store-{next(self._numbers)}.db"
        shutil.copyfile(self._template, path)
        return f"sqlite:///{path}"

    def back_up(self, url: str, database: Database) -> str:
        path = self._folder / f"backup-{next(self._numbers)}.db"
        back_up(database, path)
        return str(path)

    def restore(self, url: str, backup: str, now: datetime) -> Restored:
        return restore(self._path(url), Path(backup), now=now)

    def remove(self, url: str, backups: list[str]) -> None:
        for path in self._folder.glob(self._path(url).name + "*"):
            path.unlink()
        for backup in backups:
            self.drop_backup(backup)

    def drop_backup(self, backup: str) -> None:
        Path(backup).unlink()

    @staticmethod
    def _path(url: str) -> Path:
        return Path(url.removeprefix("sqlite:///"))


class PostgresqlPlace:
    """One database that is emptied for every new store; a backup is all its rows, put back by its own means."""

    carries_over = False
    backs_up_while_in_use = False

    def __init__(self, cluster: "Cluster") -> None:
        self.counted: Counter[str] = Counter()
        self._url = cluster.new_url()
        Database(self._url).close()
        self._empty = self.back_up()

    def new(self) -> str:
        self._put_back(self._empty)
        return self._url

    def back_up(self, *_: object) -> dict[str, bytes]:
        import psycopg

        rows = {}
        with psycopg.connect(self._url) as connection, connection.cursor() as cursor:
            for table in TABLES:
                with cursor.copy(f"COPY {table} TO STDOUT") as copy:
                    rows[table] = b"".join(bytes(part) for part in copy)
        return rows

    def restore(self, url: str, backup: dict[str, bytes], now: datetime) -> Restored:
        self._put_back(backup)
        with Database(url) as database:
            return adopt(database, now=now)

    def remove(self, *_: object) -> None:
        """The next store takes its place."""

    def drop_backup(self, _: object) -> None:
        """It lies nowhere."""

    def _put_back(self, rows: dict[str, bytes]) -> None:
        import psycopg

        with psycopg.connect(self._url) as connection, connection.cursor() as cursor:
            for table in TABLES:
                cursor.execute(f"DELETE FROM {table}")  # noqa: S608 - a constant
                with cursor.copy(f"COPY {table} FROM STDIN") as copy:
                    copy.write(rows[table])
