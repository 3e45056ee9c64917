"""What a server asks of its store while it runs, beside the mark that it leaves there: whether the clock is right."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keylock.store import LicenseStore

__all__ = ["compare_clocks"]


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
