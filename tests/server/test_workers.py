"""The pool keeps its bounds, also when callers go away."""

import asyncio
import threading

import pytest

from keylock_server.statuses import OverloadedError
from keylock_server.workers import Workers


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_results_and_errors_come_back():
    workers = Workers(threads=2, queue=2)
    assert await workers.run(lambda abandoned: abandoned.is_set()) is False

    def fail(abandoned):
        raise KeyError("x")

    with pytest.raises(KeyError):
        await workers.run(fail)
    await until(lambda: workers.pending == 0)
    workers.close()


async def test_jobs_beyond_threads_and_queue_are_refused():
    workers = Workers(threads=1, queue=1)
    gate = threading.Event()
    running = [asyncio.create_task(workers.run(lambda abandoned: gate.wait(10))) for _ in range(2)]
    await until(lambda: workers.pending == 2)
    with pytest.raises(OverloadedError) as caught:
        await workers.run(lambda abandoned: None)
    assert caught.value.retry_after_s > 0
    gate.set()
    assert await asyncio.gather(*running) == [True, True]
    await until(lambda: workers.pending == 0)
    assert await workers.run(lambda abandoned: 1) == 1
    workers.close()


async def test_an_abandoned_job_is_told_and_keeps_its_place_until_it_ends():
    workers = Workers(threads=1, queue=0)
    told, gate = [], threading.Event()

    def job(abandoned):
        told.append(abandoned.wait(10))
        gate.wait(10)

    task = asyncio.create_task(workers.run(job))
    await until(lambda: workers.pending == 1)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: told == [True])
    with pytest.raises(OverloadedError):
        await workers.run(lambda abandoned: None)
    gate.set()
    await until(lambda: workers.pending == 0)
    workers.close()


async def test_an_abandoned_job_that_waits_never_runs():
    workers = Workers(threads=1, queue=1)
    gate, ran = threading.Event(), []
    first = asyncio.create_task(workers.run(lambda abandoned: gate.wait(10)))
    await until(lambda: workers.pending == 1)
    second = asyncio.create_task(workers.run(lambda abandoned: ran.append(1)))
    await until(lambda: workers.pending == 2)
    second.cancel()
    await until(lambda: workers.pending == 1)
    gate.set()
    await first
    assert ran == []
    workers.close()
