"""How many cores and how much memory there are for this process, as the system's files say."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

__all__ = ["available_bytes", "available_cores"]

_GROUP: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")
_HALF: Final = 0.5
_MEMORY: Final = Path("/proc/meminfo")


def available_cores(group: Path = _GROUP, membership: Path = _MEMBERSHIP) -> int:
    """Count the cores this process may use: those it may run on, or fewer where a container limits its time.

    Half a core counts as one, and one and a half as two.

    Args:
        group: Folder of control groups, of version 2 or 1.
        membership: File that names the groups of this process, whose limits hold as those of the groups above do.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [limit for folder in _folders(group, membership) if (limit := _quota(folder)) is not None]
    return max(1, min([cores, *(int(limit + _HALF) for limit in limits)]))


def _folders(group: Path, membership: Path) -> Iterator[Path]:
    """Yield the folders in which a limit of time may stand: those of the groups of this process and all above them."""
    # In a container the group that is seen at the top is its own, whatever the system outside calls it.
    yield from (group, group / "cpu")
    try:
        lines = membership.read_text("ascii").splitlines()
    except (OSError, ValueError):
        return
    for _, controllers, place in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = group / "cpu" if controllers else group
        for part in Path(place).parts[1:]:
            folder /= part
            yield folder


def _quota(folder: Path) -> float | None:
    """Return how many cores a group may use, None where it has no such limit."""
    try:
        work, period = (folder / "cpu.max").read_text("ascii").split()
        return int(work) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass
    try:
        work, period = ((folder / f"cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period"))
        return int(work) / int(period) if int(work) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


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
