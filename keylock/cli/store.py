"""`keylock store`: the database of licenses and usage."""

from pathlib import Path
from typing import Annotated

import typer

from keylock.cli._console import JsonOption, new_app, print_json, print_pairs
from keylock.cli._home import DEFAULT_HOME, HomeOption
from keylock.cli._store import StoreOption, open_store, store_url

__all__ = ["app"]

app = new_app("Migrate, check and back up the store of licenses and usage.")


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
