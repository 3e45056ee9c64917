"""What a server looks at in its store while it runs: that it can be written and has this schema, and the clock."""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from keylock.errors import StoreError

if TYPE_CHECKING:
    from keylock.store import LicenseStore

__all__ = ["compare_clocks", "try_store"]


def try_store(store: "LicenseStore") -> None:
    """Returns when the store can be written and has the schema of this keylock.

    Raises:
        StoreError: If not; the message is for the operator.
    """
    from sqlalchemy import delete, insert

    from keylock.store import migrations
    from keylock.store.schema import RATES

    with store.database.transaction() as connection:
        migrations.check(connection, name=store.database.name)
        if connection.exec_driver_sql("SELECT size FROM audit_head").scalar_one_or_none() is None:
            raise StoreError(f"the audit log in {store.database.name} has lost its head: restore it from a backup")
    # A full disk or the lock of another program still lets everybody read. The row is no license's, and gone at once.
    own = f"?{secrets.token_hex(8)}"
    with store.database.transaction(writes=True) as connection:
        connection.execute(insert(RATES).values(license_id=own, full_at_us=0, touched_at_us=0))
        connection.execute(delete(RATES).where(RATES.c.license_id == own))


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
