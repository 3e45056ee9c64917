"""How fast a license may be used: a token bucket in one row and one statement.

The bucket is kept as the time at which it will be full again, the theoretical arrival time of the generic cell rate
algorithm (ITU-T I.371, annex A). A request that is larger than the bucket passes when the bucket is full and leaves a
debt, so that the average rate holds for batches of any size.
"""

from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from keylock.errors import RateError
from keylock.licensing import License
from keylock.store.raw_sql import Statement

__all__ = ["take"]

# Clocks of servers differ a little; one that is this far behind was set back, and nobody shall wait for it to catch up.
_SET_BACK_US: Final = 5_000_000

_SHIFTED: Final = (
    f"rates.full_at_us - CASE WHEN rates.touched_at_us > :now + {_SET_BACK_US}"
    " THEN rates.touched_at_us - :now ELSE 0 END"
)
_BASE: Final = f"CASE WHEN {_SHIFTED} > :now THEN {_SHIFTED} ELSE :now END"
_TAKE: Final = Statement(
    f"""
    INSERT INTO rates (license_id, full_at_us, touched_at_us) VALUES (:license, :full, :now)
    ON CONFLICT (license_id) DO UPDATE SET full_at_us = {_BASE} + :cost, touched_at_us = :now
    WHERE {_BASE} - :now <= :room
    RETURNING full_at_us
    """  # noqa: S608 - constants
)
# Time goes on from the clock that was set back; the debt stays what it was.
_REBASE: Final = Statement(
    f"""
    UPDATE rates SET full_at_us = {_SHIFTED}, touched_at_us = :now
    WHERE license_id = :license AND touched_at_us > :now + {_SET_BACK_US}
    """  # noqa: S608 - constants
)
_WAIT: Final = Statement(f"SELECT {_BASE} - :now AS debt FROM rates WHERE license_id = :license")  # noqa: S608 - constants


def take(connection: Connection, license: License, *, images: int, now: datetime) -> None:
    """Takes what a request costs out of the bucket of a license, if it has a rate.

    Args:
        connection: A connection inside a transaction that writes.
        license: The license, as the store has it.
        images: Images in the request.
        now: The time, with its zone.

    Raises:
        RateError: If the bucket does not hold enough; nothing was taken.
    """
    rate = license.rate
    if rate is None:
        return
    each_us = 1_000_000 / rate.per_second
    now_us = int(now.timestamp() * 1_000_000)
    cost, room = round(images * each_us), round((rate.burst - min(images, rate.burst)) * each_us)
    values = {"license": license.id, "now": now_us, "cost": cost, "room": room, "full": now_us + cost}
    if _TAKE.row(connection, values) is None:
        own = {"license": license.id, "now": now_us}
        _REBASE.change(connection, own)
        ((debt_us,),) = _WAIT.rows(connection, own)
        # At least a millisecond, so that nobody comes again at once.
        raise RateError(license_id=license.id, retry_after_s=max(0.001, (debt_us - room) / 1_000_000))
