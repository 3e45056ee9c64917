"""Training: a reference model where there is none, and the lock."""

from keylock.training.devices import resolve_device
from keylock.training.lock import Lock, lock, relock
from keylock.training.progress import Progress, Silent
from keylock.training.reference import train_reference
from keylock.training.settings import LockSettings
from keylock.training.team import Team, joined

__all__ = [
    "Lock",
    "LockSettings",
    "Progress",
    "Silent",
    "Team",
    "joined",
    "lock",
    "relock",
    "resolve_device",
    "train_reference",
]
