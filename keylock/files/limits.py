"""How many cores and how much memory there are for this process, as the system's files say."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["available_bytes", "available_cores"]

_GROUP: Final = Path("/sys/fs/cgroup")
_MEMORY: Final = Path("/proc/meminfo")


def available_cores(quota: Path = _GROUP / "cpu.max") -> int:
    """Count the cores this process may use: those it may run on, or fewer where a container limits its time.

    Args:
        quota: File of the limit, of cgroups version 2: microseconds of work, or `max`, and those of a period.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        work, period = quota.read_text("ascii").split()
        return max(1, min(cores, round(int(work) / int(period))))
    except (OSError, ValueError):  # No such limit.
        return cores


def available_bytes(memory: Path = _MEMORY, group: Path = _GROUP) -> int | None:
    """Return how much memory can be taken without swapping, or less where a container limits it; None if none says.

    Args:
        memory: File of what the machine has free.
        group: Folder of the limit, of cgroups version 2, and of what counts towards it.
    """
    found = [_free(memory), _left(group)]
    return min((one for one in found if one is not None), default=None)


def _free(memory: Path) -> int | None:
    try:
        words = _words(memory, "MemAvailable:")
        return int(words[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None


def _left(group: Path) -> int | None:
    try:
        limit = int((group / "memory.max").read_text("ascii"))
        used = int((group / "memory.current").read_text("ascii"))
        # Pages of files are given back when they are needed.
        files = int(_words(group / "memory.stat", "inactive_file")[1])
        return max(0, limit - used + files)
    except (OSError, ValueError, IndexError):  # No such limit.
        return None


def _words(file: Path, first: str) -> Sequence[str]:
    """Return the words of the line of a file that begins with a word; none where no line does."""
    lines = (line.split() for line in file.read_text("ascii").splitlines())
    return next((words for words in lines if words[:1] == [first]), [])
