"""Training: a reference model where there is none, and the lock."""

from keylock.training.devices import PRECISIONS, resolve_device, resolve_precision
from keylock.training.distributed import DistributedGroup, joined
from keylock.training.first_step import first_step, time_steps
from keylock.training.fitting import fitting_flips
from keylock.training.lock import Lock, lock, relock
from keylock.training.progress import NamedSteps, Progress, Silent
from keylock.training.reference import ReferenceSettings, train_reference
from keylock.training.settings import LockSettings

__all__ = [
    "PRECISIONS",
    "DistributedGroup",
    "Lock",
    "LockSettings",
    "NamedSteps",
    "Progress",
    "ReferenceSettings",
    "Silent",
    "first_step",
    "fitting_flips",
    "joined",
    "lock",
    "relock",
    "resolve_device",
    "resolve_precision",
    "time_steps",
    "train_reference",
]
