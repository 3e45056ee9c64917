"""Answers without a license take as long as those with one: they wait for what checking and charging take.

Otherwise whoever sees the times on the network could tell who has a license. Waiting costs no processor time.
"""

import asyncio
import heapq
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

__all__ = ["Alarm", "CallTimes", "ResponsePadding"]

_REMEMBERED: Final = 16
_LONGEST_S: Final = 1.0
_WEIGHT_OF_THE_LAST: Final = 0.1


class CallTimes:
    """What one call spent beside the work that every call has. It begins when this is made."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Begins.

        Args:
            clock: Seconds, to measure durations with.
        """
        self._clock, self._begun, self._worked = clock, clock(), 0.0

    def working(self) -> AbstractContextManager[None]:
        """Leaves out the time that the block takes."""
        return self._timing(1)

    def charging(self) -> AbstractContextManager[None]:
        """Counts the time that the block takes, though it lies in a block of work: only some calls have it.

        Those are the digests of licensed calls, and the query guard of the others.
        """
        return self._timing(-1)

    @contextmanager
    def _timing(self, sign: int) -> Iterator[None]:
        begun = self._clock()
        try:
            yield
        finally:
            self._worked += sign * (self._clock() - begun)

    def beside_work(self) -> float:
        """Returns the seconds up to now, but those of work."""
        return self._clock() - self._begun - self._worked


class ResponsePadding:
    """Remembers what licenses lately took in time, and lets calls without one wait as long. For one event loop."""

    def __init__(self, *, wake: "Alarm | None", generator: random.Random | None = None) -> None:
        """Begins without a memory: nobody waits before a licensed call was answered.

        Args:
            wake: Ends waits; None where nobody is to wait.
            generator: Chooses whose time is taken.
        """
        self._wake = wake
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._late = 0.0
        self._generator = generator or random.Random()  # noqa: S311 - a choice of times, no secret

    async def leave(self, times: CallTimes, *, licensed: bool) -> None:
        """Lets a call go whose answer is ready: at once with a license, otherwise when it took as long as one with it.

        Args:
            times: Of the call.
            licensed: Whether it has a license.
        """
        if self._wake is None:
            return
        if licensed:
            self._seconds.append(min(times.beside_work(), _LONGEST_S))
        elif self._seconds:
            wanted = self._generator.choice(self._seconds)
            left = wanted - times.beside_work()
            if left > 0:
                await self._wake.after(left - self._late)
                # A busy machine ends waits late: those that follow are shortened by as much.
                late = self._late + times.beside_work() - wanted
                self._late += _WEIGHT_OF_THE_LAST * (max(0.0, late) - self._late)

    def close(self) -> None:
        """Ends the thread that ends waits."""
        if self._wake is not None:
            self._wake.close()


class Alarm:
    """Ends waits within a fraction of a millisecond; the timers of an event loop round up to whole ones."""

    def __init__(self) -> None:
        """Begins; the thread starts with the first wait."""
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    async def after(self, seconds: float) -> None:
        """Returns after a time; at once where there is none left, or after `close`."""
        if seconds <= 0 or self._closed:
            return
        future = asyncio.get_running_loop().create_future()
        with self._changed:
            heapq.heappush(self._waiting, (time.perf_counter() + seconds, next(self._numbers), future))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="keylock-alarm", daemon=True)
                self._thread.start()
            self._changed.notify()
        await future

    def close(self) -> None:
        """Ends all waits, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (left := self._left()) > 0:
                    self._changed.wait(left)
                due = []
                while self._waiting and (self._closed or self._left() <= 0):
                    due.append(heapq.heappop(self._waiting)[2])
                closed = self._closed
            for future in due:
                future.get_loop().call_soon_threadsafe(_finish, future)
            if closed:
                return

    def _left(self) -> float:
        """Returns the seconds to the end of the first wait."""
        return self._waiting[0][0] - time.perf_counter() if self._waiting else threading.TIMEOUT_MAX


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():  # The caller may have gone.
        future.set_result(None)
