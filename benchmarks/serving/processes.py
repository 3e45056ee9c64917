"""Servers as processes of their own: started, waited for, weighed and ended, with all the processes they start."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

__all__ = ["ServerProcess", "free_port"]

_START_S = 300.0
_END_S = 15.0
_FIRST, _COUNT = 20_000, 12_000
# Processes that run side by side begin far from each other.
_PORTS = (_FIRST + (os.getpid() * 997 + number) % _COUNT for number in itertools.count())


def free_port() -> int:
    """Return a port of this machine that nobody listens on now, another one each time.

    It is none of those that the system gives to whoever connects or names none, and so is free still a little later.
    """
    while True:
        port = next(_PORTS)
        with socket.socket() as taken, contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", port))
            return port


class ServerProcess:
    """A process and its children, on one thread of computing."""

    def __init__(
        self, command: list[str], log: Path, *, environment: Mapping[str, str] | None = None, pipes: bool = False
    ) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.log, self._began = log, time.monotonic()
        pipe = subprocess.PIPE if pipes else None
        with log.open("wb") as file:
            self.popen = subprocess.Popen(
                command,
                env={**os.environ, **threads, **(environment or {})},
                stdin=pipe,
                stdout=pipe or file,
                stderr=file,
                # A group of its own, so that children are ended with it.
                start_new_session=True,
            )

    async def ready(self, answers: Callable[[], Awaitable[bool]]) -> float:
        """Wait until it answers; return the seconds that took from its start.

        Raises:
            RuntimeError: It ended, or takes too long; the message is the end of its log.
        """
        while not await answers():
            if self.popen.poll() is not None or time.monotonic() - self._began > _START_S:
                raise RuntimeError(f"{self.popen.args} did not start: {self.log.read_text('utf-8')[-2000:]}")
            await asyncio.sleep(0.02)
        return time.monotonic() - self._began

    @property
    def rss_bytes(self) -> int:
        """Resident memory of the process and its descendants (Linux); pages they share count for each."""
        return sum(_resident(pid) for pid in _family(self.popen.pid))

    @property
    def cpu_s(self) -> float:
        """Processor time of the process and its descendants so far (Linux), which other work weighs on little."""
        return sum(_worked(pid) for pid in _family(self.popen.pid))

    def stop(self) -> None:
        """End it and its children."""
        if self.popen.poll() is None:
            self.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(timeout=_END_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


def _family(pid: int) -> list[int]:
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text("ascii").split():
            found += _family(int(child))
    return found


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (OSError, IndexError):  # It has ended since.
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _worked(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError:  # It has ended since.
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
