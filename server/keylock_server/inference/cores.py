"""How many CPU cores there are for this process, and how they are shared out."""

import os
from pathlib import Path
from typing import Final

from keylock_server.settings import ServerSettings

__all__ = ["available_cores", "threads_per_batch", "worker_count"]

_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def available_cores(quota: Path = _QUOTA) -> int:
    """Counts the cores this process may use: those it may run on, or fewer where a container limits its time.

    Args:
        quota: File of the limit, of cgroups version 2: microseconds of work, or `max`, and those of a period.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        work, period = quota.read_text("ascii").split()
        return max(1, min(cores, round(int(work) / int(period))))
    except (OSError, ValueError):  # No such limit.
        return cores


def worker_count(settings: ServerSettings) -> int:
    """Returns how many processes serve: as set, or one for each core."""
    return settings.workers or available_cores()


def threads_per_batch(settings: ServerSettings) -> int:
    """Returns how many threads one batch gets: as set, or its share of the cores."""
    return settings.threads or max(1, available_cores() // (worker_count(settings) * settings.batches))
