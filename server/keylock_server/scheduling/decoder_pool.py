"""Threads for work on one request that takes time, such as decoding its images, so that the event loop stays free."""

import contextvars
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from keylock_server.scheduling.batching import Part
from keylock_server.scheduling.dispatching import Dispatcher

__all__ = ["DecoderPool"]

T = TypeVar("T")
_Task = Callable[[threading.Event], Any]


class DecoderPool:
    """Runs jobs in threads, in turns of the tenants that ask. Made and used in one event loop.

    Attributes:
        threads: Jobs that run at once.
    """

    def __init__(self, *, threads: int) -> None:
        """Makes the threads.

        Args:
            threads: Jobs that run at once; at least 1. How many wait is bounded by whoever admits calls.
        """
        self.threads = threads
        self._dispatcher: Dispatcher[_Task, Any] = Dispatcher(_run, threads=threads, room=lambda _family: 1)

    @property
    def pending(self) -> int:
        """Jobs that run or wait."""
        return self._dispatcher.running + self._dispatcher.waiting

    async def run(self, job: Callable[[threading.Event], T]) -> T:
        """Runs one job.

        Args:
            job: What to run; it is given an event that is set when nobody waits for the result any more.

        Returns:
            What it returns.

        Raises:
            ExpiredError: If the deadline of the call came before the job began.
        """
        # With the context of the call, so that what the job logs has its id.
        context = contextvars.copy_context()
        (result,) = await self._dispatcher.submit(lambda abandoned: context.run(job, abandoned))
        return cast(T, result)

    def close(self) -> None:
        """Drops the jobs that wait and returns without waiting for those that run."""
        self._dispatcher.close()


def _run(parts: Sequence[Part[_Task]], abandoned: threading.Event) -> Sequence[Any]:
    """Runs the only job of a batch."""
    try:
        return [parts[0].job.payload(abandoned)]
    except Exception as error:  # Whatever it is, it belongs to whoever waits.
        return [error]
