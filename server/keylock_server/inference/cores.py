"""How the CPU cores that there are for this process are shared out, and what the processor is."""

import platform
from pathlib import Path
from typing import Final

from keylock.crypto.digests import digest_of
from keylock.files.limits import available_cores
from keylock_server.settings import ServerSettings

__all__ = ["cores_of_process", "describe_processor", "threads_per_batch", "worker_count"]

_ABOUT: Final = Path("/proc/cpuinfo")


def describe_processor(about: Path = _ABOUT) -> str:
    """Returns what tells processors apart that compute at other speeds: name, and features as the system knows them.

    Args:
        about: The system's file about its processors; where there is none, the kind of the machine has to do.
    """
    try:
        lines = about.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    features = " ".join(sorted(found.get("flags", found.get("Features", "")).split()))
    return f"{found.get('model name', platform.machine())}, {digest_of(features.encode())[:19]}"


def worker_count(settings: ServerSettings) -> int:
    """Returns how many processes serve: as set, or one for each core."""
    return settings.workers or available_cores()


def cores_of_process(settings: ServerSettings) -> int:
    """Returns how many cores one of the processes has for itself."""
    return max(1, available_cores() // worker_count(settings))


def threads_per_batch(settings: ServerSettings) -> int:
    """Returns how many threads one batch gets: as set, or its share of the cores."""
    return settings.threads or max(1, available_cores() // (worker_count(settings) * settings.batches))
