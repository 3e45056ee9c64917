"""`keylock store`: the database of licenses and usage."""

from pathlib import Path
from typing import Annotated

import typer

from keylock.cli._console import JsonOption, new_app, note, print_json, print_pairs
from keylock.cli._home import DEFAULT_HOME, HomeOption
from keylock.cli._store import StoreOption, open_store, store_url

__all__ = ["app"]

app = new_app("Migrate, check, back up and restore the store of licenses and usage.")


@app.command("migrate")
def store_migrate(store: StoreOption = None, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Bring the store to the schema of this keylock; an empty one is filled.

    It happens in one transaction: a migration that fails leaves the store as it was. Stop the servers first.
    """
    from keylock.store import Database

    with Database.of_any_schema(store_url(store, home)) as database:
        before, after = database.migrate()
        name = database.name
    if as_json:
        print_json({"store": name, "schema_before": before, "schema": after})
    else:
        print_pairs([("store", name), ("schema before", before or "none"), ("schema", after)])


@app.command("check")
def store_check(store: StoreOption = None, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Check that the store is reachable, has the right schema and is whole, and count what is in it."""
    with open_store(store, home) as opened:
        found = opened.database.check()
        shown = {"store": opened.database.name, **found}
    if as_json:
        print_json(shown)
    else:
        print_pairs(shown)


@app.command("backup")
def store_backup(
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new file; it gets mode 0600.")],
    store: StoreOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Copy a SQLite store into a new file while servers go on using it. PostgreSQL has pg_dump for this."""
    from keylock.store.backup import back_up

    with open_store(store, home) as opened:
        back_up(opened.database, out)
    if as_json:
        print_json({"file": out})
    else:
        typer.echo(str(out))


@app.command("restore")
def store_restore(
    backup: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="A backup; none for PostgreSQL.", show_default=False),
    ] = None,
    store: StoreOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Put a backup in the place of a store; stop its servers first.

    Revocations, suspensions, cut-off times and renewals that came after the backup are carried over where the old store
    can still be read; it is moved aside and kept. A PostgreSQL database is put back with pg_restore: run this without a
    file afterwards, so that servers which still run notice it.
    """
    from datetime import UTC, datetime

    from keylock.errors import InputError
    from keylock.store import Database
    from keylock.store.database import sqlite_path
    from keylock.store.restoring import adopt, restore

    url, now = store_url(store, home), datetime.now(UTC)
    path = sqlite_path(url)
    if path is not None:
        if backup is None:
            raise InputError("name the backup to restore: a file that `keylock store backup` wrote")
        restored = restore(path, backup, now=now)
    elif backup is not None:
        raise InputError("the store is a PostgreSQL database: use pg_restore, then run this without a file")
    else:
        with Database.of_any_schema(url) as database:
            database.migrate()
            restored = adopt(database, now=now)
    if as_json:
        print_json(restored)
        return
    pairs: list[tuple[str, object]] = [("store", restored.name), ("replaced store", restored.kept or "none")]
    if restored.readable:
        pairs += [
            ("licenses closed again", restored.closed),
            ("licenses renewed again", restored.renewed),
            ("tokens revoked again", restored.tokens),
            ("licenses lost", restored.lost_licenses),
            ("charges lost", f"{restored.lost_charges} ({restored.lost_units} units)"),
        ]
    else:
        # The store that was replaced could not be read, or is gone: nothing is known of what it had.
        pairs += [("licenses lost", "not known"), ("charges lost", "not known: keylock usage reconcile --receipt FILE")]
    print_pairs(pairs)
    if not restored.readable:
        note(
            "what was revoked, suspended or renewed after the backup is not known: do it again before the servers start"
        )
