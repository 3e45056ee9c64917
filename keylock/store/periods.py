"""Days and months, in UTC, as the numbers the counters are kept by."""

from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["PERIODS", "day_of", "month_of", "resets_at"]

PERIODS: Final = ("day", "month", "total")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def day_of(moment: datetime) -> int:
    """Returns the number of days from 1970-01-01 to a moment."""
    return (moment.astimezone(UTC) - _EPOCH).days


def month_of(moment: datetime) -> int:
    """Returns the number of months from January 1970 to a moment."""
    utc = moment.astimezone(UTC)
    return (utc.year - 1970) * 12 + utc.month - 1


def resets_at(period: str, moment: datetime) -> datetime | None:
    """Returns the end of the day or month that a moment is in; None for the total, which is never filled again."""
    if period == "day":
        return _EPOCH + timedelta(days=day_of(moment) + 1)
    if period == "month":
        following = month_of(moment) + 1
        return datetime(1970 + following // 12, following % 12 + 1, 1, tzinfo=UTC)
    return None
