"""Training: a reference model where there is none, and the lock."""

from keylock.training.devices import PRECISIONS, resolve_device, resolve_precision
from keylock.training.lock import Lock, lock, relock
from keylock.training.progress import NamedSteps, Progress, Silent
from keylock.training.reference import train_reference
from keylock.training.settings import LockSettings
from keylock.training.team import Team, joined

__all__ = [
    "PRECISIONS",
    "Lock",
    "LockSettings",
    "NamedSteps",
    "Progress",
    "Silent",
    "Team",
    "joined",
    "lock",
    "relock",
    "resolve_device",
    "resolve_precision",
    "train_reference",
]
