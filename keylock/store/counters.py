"""What a license has used of its quotas: a counter for each day and each month, and one for the total.

Nothing is checked first and written later: one statement compares the counters with their limits and adds to them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from keylock.errors import QuotaError
from keylock.licensing import License, Quota
from keylock.store.periods import PERIODS, day_of, month_of, resets_at
from keylock.store.raw_sql import Statement

__all__ = ["Window", "add_units", "look_up", "overage_of", "subtract_units"]

_UNLIMITED: Final = 2**62

# Adds to the counters that stay within their ceilings, and returns those alone: compared and added in one.
_ADD: Final = Statement(
    """
    INSERT INTO counters (license_id, period, start, used, ceiling)
    VALUES (:license, 'day', :day_start, :units, :day_ceiling),
           (:license, 'month', :month_start, :units, :month_ceiling),
           (:license, 'total', :total_start, :units, :total_ceiling)
    ON CONFLICT (license_id, period, start) DO UPDATE
    SET used = counters.used + excluded.used, ceiling = excluded.ceiling
    WHERE counters.used + excluded.used <= excluded.ceiling
    RETURNING period, used
    """
)
_SUBTRACT: Final = Statement(
    "UPDATE counters SET used = used - :units WHERE license_id = :license AND period = :period AND start = :start"
)
_USED: Final = Statement(
    """
    SELECT period, used FROM counters WHERE license_id = :license
    AND (period = 'day' AND start = :day_start OR period = 'month' AND start = :month_start OR period = 'total')
    """
)


@dataclass(frozen=True, slots=True)
class Window:
    """A quota and how much of it is used.

    Attributes:
        period: `day`, `month` or `total`.
        limit: Units in the period; None where there is no limit.
        used: Units used or reserved.
        resets_at: When the period ends; None for the total.
    """

    period: str
    limit: int | None
    used: int
    resets_at: datetime | None

    @property
    def remaining(self) -> int | None:
        """Units that are left; None where there is no limit."""
        return None if self.limit is None else max(0, self.limit - self.used)


def look_up(connection: Connection, license: License, now: datetime) -> tuple[Window, ...]:
    """Returns what a license has used, one window for each period.

    Args:
        connection: A connection inside a transaction.
        license: The license, as the store has it.
        now: The time, with its zone.
    """
    values = {"license": license.id, "day_start": day_of(now), "month_start": month_of(now)}
    return _windows(license.quota, dict(_USED.rows(connection, values)), now)


def add_units(connection: Connection, license: License, units: int, *, now: datetime) -> tuple[Window, ...]:
    """Adds units to the counters of all periods, or to none.

    Args:
        connection: A connection inside a transaction that writes.
        license: The license, as the store has it.
        units: What to add.
        now: The time, with its zone.

    Returns:
        One window for each period, the units included.

    Raises:
        QuotaError: If a quota without overage has not so many left.
    """
    quota, starts = license.quota, _starts(day_of(now), month_of(now))
    limits: dict[str, int | None] = {period: getattr(quota, period) for period in PERIODS}
    ceilings = {period: _UNLIMITED if quota.overage or limit is None else limit for period, limit in limits.items()}
    added: dict[str, int] = {}
    # A first row cannot be compared with a counter that is not there yet.
    if units <= min(ceilings.values()):
        values: dict[str, object] = {"license": license.id, "units": units}
        for period in PERIODS:
            values[f"{period}_start"], values[f"{period}_ceiling"] = starts[period], ceilings[period]
        added = dict(_ADD.rows(connection, values))
    if len(added) < len(PERIODS):
        subtract_units(connection, license.id, units, day=starts["day"], month=starts["month"], periods=added)
        raise _quota_error(license.id, look_up(connection, license, now), units)
    return _windows(quota, added, now)


def subtract_units(
    connection: Connection, license_id: str, units: int, *, day: int, month: int, periods: Iterable[str] = PERIODS
) -> None:
    """Takes units that were added on a day back from the counters of some periods.

    Args:
        connection: A connection inside a transaction that writes.
        license_id: The license.
        units: What was added.
        day: When, in days since 1970.
        month: When, in months since January 1970.
        periods: Whose counters.
    """
    starts = _starts(day, month)
    for period in periods:
        values = {"license": license_id, "period": period, "start": starts[period], "units": units}
        _SUBTRACT.change(connection, values)


def overage_of(windows: Iterable[Window], units: int) -> int:
    """Returns how many of the units that were added last are beyond a limit."""
    beyond = max((window.used - window.limit for window in windows if window.limit is not None), default=0)
    return min(units, max(0, beyond))


def _starts(day: int, month: int) -> dict[str, int]:
    return {"day": day, "month": month, "total": 0}


def _windows(quota: Quota, used: Mapping[str, int], now: datetime) -> tuple[Window, ...]:
    return tuple(
        Window(period, getattr(quota, period), used.get(period, 0), resets_at(period, now)) for period in PERIODS
    )


def _quota_error(license_id: str, windows: Iterable[Window], units: int) -> QuotaError:
    # Of those that are spent the one that lasts longest: when it is filled again the others are as well.
    last = [one for one in windows if one.limit is not None and one.used + units > one.limit][-1]
    return QuotaError(
        license_id=license_id,
        period=last.period,
        limit=last.limit or 0,
        used=last.used,
        units=units,
        resets_at=last.resets_at,
    )
