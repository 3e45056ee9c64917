"""Training: a reference model where there is none, and the lock."""

from keylock.training.devices import resolve_device
from keylock.training.lock import Lock, lock
from keylock.training.progress import Progress, Silent
from keylock.training.reference import train_reference
from keylock.training.settings import LockSettings

__all__ = ["Lock", "LockSettings", "Progress", "Silent", "lock", "resolve_device", "train_reference"]
