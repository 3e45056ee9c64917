"""A bounded pool of threads for what takes time, so that the event loop stays free and a full server says so at once.

A job keeps its place until its thread is done with it, even when the caller has gone: a thread cannot be stopped, and
counting it as free would let abandoned calls pile up.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from keylock_server.statuses import OverloadedError

__all__ = ["Workers"]

T = TypeVar("T")


class Workers:
    """Runs jobs in threads, at most `threads` at once and `queue` waiting.

    Attributes:
        pending: Jobs that run or wait.
    """

    def __init__(self, *, threads: int, queue: int, retry_after_s: float = 0.5) -> None:
        """Makes the pool.

        Args:
            threads: Jobs that run at once; at least 1.
            queue: Jobs that may wait beyond those.
            retry_after_s: What callers are told when the queue is full, in seconds.
        """
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="keylock-worker")
        self._limit = threads + queue
        self._retry_after_s = retry_after_s
        self._lock = threading.Lock()
        self.pending = 0

    async def run(self, job: Callable[[threading.Event], T]) -> T:
        """Runs one job.

        Args:
            job: What to run; it is given an event that is set when nobody waits for the result any more.

        Returns:
            What it returns.

        Raises:
            OverloadedError: If the queue is full; the job was not started.
        """
        with self._lock:
            if self.pending >= self._limit:
                raise OverloadedError(retry_after_s=self._retry_after_s)
            abandoned = threading.Event()
            # With the context of the call, so that what the job logs has its id.
            future = self._executor.submit(contextvars.copy_context().run, job, abandoned)
            self.pending += 1
        future.add_done_callback(self._release)
        try:
            return await asyncio.wrap_future(future)
        finally:
            abandoned.set()

    def close(self) -> None:
        """Drops the jobs that wait and returns without waiting for those that run."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _release(self, _: Future[T]) -> None:
        with self._lock:
            self.pending -= 1
