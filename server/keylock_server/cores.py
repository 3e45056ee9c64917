"""How many CPU cores there are for this process, and how they are shared out."""

import os
from pathlib import Path
from typing import Final

__all__ = ["available_cores", "threads_per_batch"]

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


def threads_per_batch(*, threads: int, workers: int, batches: int, cores: int) -> int:
    """Returns how many threads one batch gets.

    Args:
        threads: As set; 0 shares out the cores.
        workers: Processes.
        batches: Batches that run at once in each.
        cores: How many there are.
    """
    return threads or max(1, cores // (workers * batches))
