"""What a server looks at in its store while it runs: that it can be read and has this schema, and the clock."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from keylock.errors import StoreError

if TYPE_CHECKING:
    from keylock.store import LicenseStore

__all__ = ["compare_clocks", "try_store"]


def try_store(store: "LicenseStore") -> None:
    """Returns when the store can be read and has the schema of this keylock.

    Raises:
        StoreError: If not; the message is for the operator.
    """
    from keylock.store import migrations

    with store.database.transaction() as connection:
        migrations.check(connection, name=store.database.name)
        if connection.exec_driver_sql("SELECT size FROM audit_head").scalar_one_or_none() is None:
            raise StoreError(f"the audit log in {store.database.name} has lost its head: restore it from a backup")


def compare_clocks(store: "LicenseStore", *, now: Callable[[], datetime], leeway_s: float) -> str | None:
    """Tells whether this machine's clock is behind what was charged already, here or by another server.

    Nothing is lost by that: what was charged stays, and quotas count in the period the clock names. But day and month
    are the wrong ones, and licenses that have ended look as if they had not.

    Args:
        store: The store.
        now: The clock, in UTC.
        leeway_s: By how many seconds clocks may differ.

    Returns:
        What is wrong, in words for the operator; None where nothing is.

    Raises:
        StoreError: If the store cannot be read.
    """
    with store.database.transaction() as connection:
        newest = connection.exec_driver_sql("SELECT max(charged_at) FROM ledger").scalar_one_or_none()
    if newest is None or now().timestamp() + leeway_s >= newest:
        return None
    charged = datetime.fromtimestamp(newest, UTC)
    return (
        f"the clock was set back, or that of another server is ahead: it is {now():%Y-%m-%d %H:%M:%S} UTC here, and "
        f"something was charged at {charged:%Y-%m-%d %H:%M:%S} UTC"
    )
