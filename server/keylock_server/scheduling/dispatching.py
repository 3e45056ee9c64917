"""A queue of rows before a few threads: the part of batching that knows the clock and the event loop.

A batch is taken when a thread is free, so that nothing waits beside an idle thread and batches grow by themselves
under load. Rows whose caller went away or whose deadline has come are dropped before they run. A thread cannot be
stopped; a batch that nobody waits for any more is told so, and may end early.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from keylock.errors import ServiceError
from keylock_server.scheduling.batching import Job, Part, RowQueue
from keylock_server.transport.calls import current_call
from keylock_server.transport.statuses import ExpiredError

__all__ = ["Dispatcher"]

T = TypeVar("T")
R = TypeVar("R")

_NOBODY: Final = ""


@dataclass(eq=False, slots=True)
class _Caller(Generic[R]):
    """Who waits for a job: what is told in the end, and what has come so far, by the first row."""

    done: "asyncio.Future[None]"
    rows_done: int = 0
    pieces: dict[int, R] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Batch(Generic[T]):
    """What runs, and whether nobody waits for it any more."""

    parts: list[Part[T]]
    abandoned: threading.Event = field(default_factory=threading.Event)


class Dispatcher(Generic[T, R]):
    """Runs rows in threads, those of several callers together. Made and used in one event loop."""

    def __init__(
        self,
        run: Callable[[Sequence[Part[T]], threading.Event], Sequence[R | Exception]],
        *,
        threads: int,
        room: Callable[[str], int],
        delay_s: float = 0.0,
        note: Callable[[str, int, float], None] = lambda _family, _rows, _seconds: None,
        name: str = "keylock-worker",
    ) -> None:
        """Makes the dispatcher.

        Args:
            run: Runs a batch in a thread and returns one result, or one error, for each of its parts; raises nothing.
                The event is set when nobody waits for any of them any more.
            threads: Batches that run at once; at least 1.
            room: Returns how many rows of a family one batch has room for.
            delay_s: How long rows wait beside a free thread for others to share a batch with, in seconds.
            note: Told of each batch that ran: family, rows, seconds.
            name: Of the threads.
        """
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._run, self._room, self._delay_s, self._note = run, room, delay_s, note
        self._free = threads
        self._queue: RowQueue[T] = RowQueue()
        self._callers: dict[Job[T], _Caller[R]] = {}
        self._batches: set[_Batch[T]] = set()
        self._turn: asyncio.Handle | None = None
        self._closed = False

    @property
    def running(self) -> int:
        """Batches that run."""
        return len(self._batches)

    @property
    def waiting(self) -> int:
        """Rows that wait."""
        return self._queue.waiting

    async def submit(self, payload: T, *, rows: int = 1, family: str = "") -> list[R]:
        """Runs the rows of the current call, in the turn of its tenant and before its deadline.

        Args:
            payload: What `run` is given.
            rows: How many rows it has; at least 1.
            family: Which other rows they may share a batch with.

        Returns:
            The results of the parts it was split into, in the order of its rows.

        Raises:
            ExpiredError: If the deadline came first; nothing more of it runs.
            ServiceError: If the dispatcher was closed first.
            Exception: Whatever `run` returned for one of its parts.
        """
        if self._closed:
            raise _closing()
        call = current_call()
        job = Job(
            payload,
            rows=rows,
            family=family,
            tenant=_NOBODY if call is None else call.tenant,
            arrived=self._loop.time(),
            deadline=None if call is None else call.deadline,
        )
        caller: _Caller[R] = _Caller(self._loop.create_future())
        self._callers[job] = caller
        self._queue.add(job)
        self._look_at(None)
        try:
            await caller.done
        finally:
            del self._callers[job]
            self._queue.remove(job)
            self._tell_abandoned()
        return [caller.pieces[start] for start in sorted(caller.pieces)]

    def close(self) -> None:
        """Drops what waits, which ends with an error, and returns without waiting for what runs."""
        self._closed = True
        if self._turn is not None:
            self._turn.cancel()
        for job in self._queue.clear():
            self._fail(job, _closing())
        for batch in self._batches:
            batch.abandoned.set()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _look_at(self, when: float | None) -> None:
        """Looks at the queue at a time; when None, as soon as what has come in by now is in the queue."""
        if self._turn is not None:
            self._turn.cancel()
        if when is None:
            self._turn = self._loop.call_soon(self._dispatch)
        else:
            self._turn = self._loop.call_at(when, self._dispatch)

    def _dispatch(self) -> None:
        self._turn = None
        for job in self._queue.drop_expired(self._loop.time()):
            self._fail(job, ExpiredError())
        while self._free and self._queue.waiting and not self._closed:
            if self._delay_s:
                due = self._queue.due(self._room, delay_s=self._delay_s)
                if due > self._loop.time():
                    self._look_at(due)
                    return
            batch = _Batch(self._queue.take(self._room))
            self._free -= 1
            self._batches.add(batch)
            self._executor.submit(self._work, batch)

    def _work(self, batch: _Batch[T]) -> None:
        """Runs a batch, in a thread."""
        started = time.perf_counter()
        results: Sequence[R | Exception]
        try:
            results = self._run(batch.parts, batch.abandoned)
        except BaseException as error:  # The thread must come free again, whatever it was.
            results = [RuntimeError(type(error).__qualname__) for _ in batch.parts]
        self._loop.call_soon_threadsafe(self._finish, batch, results, time.perf_counter() - started)

    def _finish(self, batch: _Batch[T], results: Sequence[R | Exception], seconds: float) -> None:
        self._free += 1
        self._batches.discard(batch)
        parts = batch.parts
        if not batch.abandoned.is_set():  # Else it may have ended early.
            self._note_run(parts, seconds)
        self._hand_out(parts, results)
        self._dispatch()

    def _note_run(self, parts: list[Part[T]], seconds: float) -> None:
        self._note(parts[0].job.family, sum(part.stop - part.start for part in parts), seconds)

    def _hand_out(self, parts: list[Part[T]], results: Sequence[R | Exception]) -> None:
        for part, result in zip(parts, results, strict=True):
            caller = self._callers.get(part.job)
            if caller is None or caller.done.done():
                continue
            if isinstance(result, Exception):
                self._queue.remove(part.job)
                caller.done.set_exception(result)
                continue
            caller.pieces[part.start] = result
            caller.rows_done += part.stop - part.start
            if caller.rows_done == part.job.rows:
                caller.done.set_result(None)

    def _tell_abandoned(self) -> None:
        for batch in self._batches:
            if not any(part.job in self._callers for part in batch.parts):
                batch.abandoned.set()

    def _fail(self, job: Job[T], error: Exception) -> None:
        caller = self._callers[job]
        if not caller.done.done():
            caller.done.set_exception(error)


def _closing() -> ServiceError:
    return ServiceError("the server is stopping, or has unloaded the model: try again, here or elsewhere")
