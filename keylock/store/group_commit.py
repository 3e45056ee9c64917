"""Many small changes in one transaction: what makes durable metering cheap.

A commit that survives a power cut waits for the disk. One thread takes all operations that wait, runs them in one
transaction and commits once; each caller is answered after that commit, and not before. While several callers are at
work it waits a little before it begins, so that more of them share a transaction: half as long as the last one took,
as PostgreSQL advises for its `commit_delay`. A transaction of nothing but operations that need not last does not wait
for the disk.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from sqlalchemy import Connection

from keylock.errors import MeteringError, StoreError
from keylock.store.database import Database

__all__ = ["GroupCommit", "defer"]

T = TypeVar("T")

_MAX_BATCH: Final = 256
_ATTEMPTS: Final = 3
_PAUSE_S: Final = 0.05
_LONGEST_WAIT_S: Final = 0.005
_STALLED_S: Final = 5.0
_DEFERRED: Final = "keylock_deferred"
_ENDED: Final = "the thread that writes to the license store has ended: start the server again"


_Outcome: TypeAlias = tuple[Any, BaseException | None]


@dataclass(frozen=True, slots=True)
class _Job:
    order: str
    operation: Callable[[Connection], Any]
    future: "Future[Any]"
    lasting: bool


def defer(connection: Connection, last: Callable[[Connection, list[T]], object], item: T) -> None:
    """Has something done once at the end of the transaction, for all items together.

    For what locks a row that all licenses share: locked last and for a moment, it is never held while another row is
    waited for, so servers of one database do not block each other.

    Args:
        connection: The one an operation was given.
        last: What to do with the items; the same function gets all items of a transaction, in order.
        item: One item.
    """
    connection.info[_DEFERRED].setdefault(last, []).append(item)


class GroupCommit:
    """Runs operations on a store in a thread of its own, many in one transaction.

    An operation that refuses, with a `MeteringError`, has changed nothing or has undone what it changed; the others of
    the transaction are committed. Any other failure ends the transaction, and each of its operations is run again
    alone: so an operation must give the same result when it is repeated, and touch nothing but the connection.
    """

    def __init__(self, database: Database) -> None:
        """Starts the thread.

        Args:
            database: The store.
        """
        self._writer = database.writer()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._ended = False
        self._busy_since: float | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="keylock-store", daemon=True)
        self._thread.start()

    def submit(self, operation: Callable[[Connection], T], *, order: str, lasting: bool = True) -> "Future[T]":
        """Hands over an operation.

        Args:
            operation: What to run; it is given a connection inside a transaction that writes.
            order: Operations of one transaction are sorted by this text, so that several servers lock the rows of a
                database in one order. Operations with equal texts keep theirs.
            lasting: Whether what it writes must survive a power cut.

        Returns:
            Its result, once it is committed. One that is cancelled before it began is not run.

        Raises:
            StoreError: If the store was closed, or its thread has ended.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise StoreError("the license store is closed")
            if self._ended:
                raise StoreError(_ENDED)
            self._jobs.put(_Job(order, operation, future, lasting))
        return future

    def problem(self) -> str | None:
        """Returns what keeps operations from being run, in words for the operator; None where nothing does."""
        if self._ended or not self._thread.is_alive():
            return _ENDED
        since = self._busy_since
        waited_s = 0.0 if since is None else time.perf_counter() - since
        if waited_s > _STALLED_S:
            return f"the license store has not finished what it began {waited_s:.0f} s ago: check its disk or database"
        return None

    def close(self) -> None:
        """Runs what was handed over, and ends the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        finally:
            # Whatever ended the thread, nobody waits for it in vain.
            with self._lock:
                self._ended = True
            self._refuse_the_rest()
            self._writer.close()

    def _refuse_the_rest(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None and job.future.set_running_or_notify_cancel():
                job.future.set_exception(StoreError(_ENDED))

    def _work(self) -> None:
        open_, wait_s = True, 0.0
        while open_:
            jobs = [self._jobs.get()]
            if wait_s:
                time.sleep(wait_s)
            while len(jobs) < _MAX_BATCH:
                try:
                    jobs.append(self._jobs.get_nowait())
                except queue.Empty:
                    break
            open_ = None not in jobs
            wanted = [job for job in jobs if job is not None and job.future.set_running_or_notify_cancel()]
            began = self._busy_since = time.perf_counter()
            self._answer(sorted(wanted, key=lambda job: job.order))
            self._busy_since = None
            # Whoever is alone is not kept waiting.
            wait_s = min(_LONGEST_WAIT_S, (time.perf_counter() - began) / 2) if len(wanted) > 1 else 0.0

    def _answer(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        try:
            outcomes = self._together(jobs)
        except Exception:
            outcomes = self._one_by_one(jobs)
        except BaseException:
            for job in jobs:
                job.future.set_exception(StoreError(_ENDED))
            raise
        for job, (result, error) in zip(jobs, outcomes, strict=True):
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)

    def _together(self, jobs: list[_Job]) -> list[_Outcome]:
        outcomes: list[_Outcome] = []
        with self._writer.transaction(lasting=any(job.lasting for job in jobs)) as connection:
            connection.info[_DEFERRED] = {}
            for job in jobs:
                try:
                    outcomes.append((job.operation(connection), None))
                except MeteringError as error:
                    outcomes.append((None, error))
            for last, items in connection.info.pop(_DEFERRED).items():
                last(connection, items)
        return outcomes

    def _one_by_one(self, jobs: list[_Job]) -> list[_Outcome]:
        """Runs each alone, so that one that cannot be done does not take others with it.

        Once the store itself fails, the rest is not tried: every one of them would wait for it in turn.
        """
        outcomes: list[_Outcome] = []
        for job in jobs:
            outcomes.append(self._alone(job))
            error = outcomes[-1][1]
            if isinstance(error, StoreError) and error.passing:
                outcomes += [(None, error)] * (len(jobs) - len(outcomes))
                break
        return outcomes

    def _alone(self, job: _Job) -> _Outcome:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._together([job])[0]
            except StoreError as error:
                if attempt == _ATTEMPTS or not error.passing:
                    return None, error
                time.sleep(_PAUSE_S * attempt)
            except Exception as error:  # A fault of an operation is its caller's to report.
                return None, error
        raise AssertionError("the last attempt returns")
