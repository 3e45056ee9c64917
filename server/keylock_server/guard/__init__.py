"""The query guard: tells near copies of recent pictures, and counts how many of them were answered. NumPy only."""

from keylock_server.guard.guard import Admission, Guard, GuardLimits, GuardStatus, Mode

__all__ = ["Admission", "Guard", "GuardLimits", "GuardStatus", "Mode"]
