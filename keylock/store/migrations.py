"""Which schema a store has, and bringing it to the newest one. The migrations are files in `versions`, for Alembic.

Everything happens inside a transaction of the caller, so that a migration that fails leaves the store as it was, and
of several processes that find an empty store one fills it while the others wait.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, inspect, text

from keylock.errors import StoreError

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["HEAD", "OLDEST", "check", "revision_of", "upgrade"]

HEAD: Final = "0006"
"""The revision this keylock works with."""

OLDEST: Final = "0001"


def revision_of(connection: Connection) -> str | None:
    """Finds the revision of a store.

    Returns:
        The revision; None where the store is empty.
    """
    tables = inspect(connection).get_table_names()
    if "alembic_version" in tables:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    # Before there were migrations, the schema was that of the first one.
    return OLDEST if "licenses" in tables else None


def check(connection: Connection, *, name: str) -> None:
    """Returns when a store has the schema this keylock works with.

    Args:
        connection: An open connection to it.
        name: What to call it in the error, without passwords.

    Raises:
        StoreError: If it has not; the message says what to do.
    """
    found = revision_of(connection)
    if found == HEAD:
        return
    if found is None:
        raise StoreError(f"the store {name} is empty: fill it with `keylock store migrate`")
    if found in _revisions():
        raise StoreError(
            f"the store {name} has the schema {found} and this keylock works with {HEAD}: make a backup and run "
            "`keylock store migrate`"
        )
    raise StoreError(
        f"a newer keylock made the store {name} (schema {found}, this one works with {HEAD}): upgrade keylock"
    )


def upgrade(connection: Connection, *, name: str) -> tuple[str | None, str]:
    """Brings a store to the newest schema.

    Args:
        connection: A connection inside a transaction that writes.
        name: What to call it in the error, without passwords.

    Returns:
        The revision it had, None where it was empty, and the one it has.

    Raises:
        StoreError: If a newer keylock made it.
    """
    if connection.dialect.name == "postgresql":
        # Held until the transaction ends; the number has no meaning beyond being ours.
        connection.execute(text("SELECT pg_advisory_xact_lock(7020813)"))
    found = revision_of(connection)
    if found == HEAD:
        return found, HEAD
    if found is not None and found not in _revisions():
        check(connection, name=name)
    _run(connection, since=found)
    return found, HEAD


def _run(connection: Connection, *, since: str | None) -> None:
    from alembic import command

    config = _config()
    config.attributes["connection"] = connection
    if since is not None and "alembic_version" not in inspect(connection).get_table_names():
        command.stamp(config, since)
    command.upgrade(config, HEAD)


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    # A percent sign would begin an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def _revisions() -> frozenset[str]:
    from alembic.script import ScriptDirectory

    return frozenset(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())
