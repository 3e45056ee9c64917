"""File descriptors: every connection takes one, and a server that has none left answers nobody, without a word.

So the limit is raised as far as this user may, connections beyond what it leaves are refused when they come, and the
health says when few are left.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Final

from keylock.errors import ServiceError

__all__ = ["allowed_connections", "check_descriptors", "raise_limit"]

_LOG: Final = logging.getLogger("keylock_server")
_WANTED: Final = 65_536
# What a server opens beside connections while it runs: the store, files of TLS, models that are loaded.
_RESERVE: Final = 24
_FEWEST: Final = 4
_FEW: Final = 64
_OPEN: Final = Path("/dev/fd")


def raise_limit() -> None:
    """Lets this process have as many open files as its user may, up to 65,536. Nothing happens where that fails."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            _LOG.warning("the limit of %d open files could not be raised to %d", soft, wanted)


def allowed_connections() -> int | None:
    """Returns how many connections there are descriptors for; None where the system does not say.

    Raises:
        ServiceError: If there are too few to serve anybody.
    """
    found = _used_and_limit()
    if found is None:
        return None
    used, limit = found
    connections = limit - used - _RESERVE
    if connections < _FEWEST:
        raise ServiceError(
            f"this process may open {limit} files and needs at least {used + _RESERVE + _FEWEST}: raise the limit "
            "(`ulimit -n`, or LimitNOFILE of systemd)"
        )
    if connections < _FEW:
        _LOG.warning("there are descriptors for %d connections: raise the limit of %d open files", connections, limit)
    return connections


def check_descriptors() -> str | None:
    """Returns what is wrong where few descriptors are left, in words for the operator; None otherwise."""
    found = _used_and_limit()
    if found is None or found[1] - found[0] >= _RESERVE // 2:
        return None
    used, limit = found
    return f"{used} of {limit} file descriptors are in use: raise the limit, or find out who holds connections open"


def _used_and_limit() -> tuple[int, int] | None:
    """Returns how many files are open, and how many may be; None where the system does not say, or sets no limit."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        used = len(os.listdir(_OPEN))
    except FileNotFoundError:
        return None
    except OSError:
        # There is none left to look with.
        used = limit
    return None if limit == resource.RLIM_INFINITY else (used, limit)
