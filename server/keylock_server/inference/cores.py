"""How the CPU cores that there are for this process are shared out."""

from keylock.files.limits import available_cores
from keylock_server.settings import ServerSettings

__all__ = ["cores_of_process", "threads_per_batch", "worker_count"]


def worker_count(settings: ServerSettings) -> int:
    """Returns how many processes serve: as set, or one for each core."""
    return settings.workers or available_cores()


def cores_of_process(settings: ServerSettings) -> int:
    """Returns how many cores one of the processes has for itself."""
    return max(1, available_cores() // worker_count(settings))


def threads_per_batch(settings: ServerSettings) -> int:
    """Returns how many threads one batch gets: as set, or its share of the cores."""
    return settings.threads or max(1, available_cores() // (worker_count(settings) * settings.batches))
