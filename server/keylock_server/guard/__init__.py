"""The query guard: tells near copies of recent pictures, and counts how many of them were answered, and with what.

It works with NumPy, and with the keyed digest of `cryptography`.
"""

from keylock_server.guard.guard import (
    OTHER_UNITS,
    SAME_UNITS,
    UNHEARD_UNITS,
    Admission,
    Guard,
    GuardLimits,
    GuardStatus,
    Mode,
)

__all__ = [
    "OTHER_UNITS",
    "SAME_UNITS",
    "UNHEARD_UNITS",
    "Admission",
    "Guard",
    "GuardLimits",
    "GuardStatus",
    "Mode",
]
