"""Threads in front of a queue: results and errors come back, whoever goes away or comes too late is dropped."""

import asyncio
import threading

import pytest

from keylock.errors import ServiceError
from keylock_server.scheduling.decoder_pool import DecoderPool
from keylock_server.transport.calls import Call, set_call, set_license
from keylock_server.transport.statuses import ExpiredError


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def asked_by(workers, job, *, license_id="", deadline=None) -> asyncio.Task:
    """Runs a job as a call of its own."""

    async def call():
        set_call(Call("m", "", deadline=deadline))
        set_license(license_id)
        return await workers.run(job)

    return asyncio.create_task(call())


@pytest.fixture
async def workers():
    made = DecoderPool(threads=1)
    yield made
    made.close()


@pytest.fixture
def gate():
    event = threading.Event()
    yield event
    event.set()


async def test_results_and_errors_come_back(workers):
    assert await workers.run(lambda abandoned: abandoned.is_set()) is False

    def fail(abandoned):
        raise KeyError("x")

    def fail_hard(abandoned):
        raise SystemExit

    with pytest.raises(KeyError):
        await workers.run(fail)
    with pytest.raises(RuntimeError, match="SystemExit"):
        await workers.run(fail_hard)
    assert workers.pending == 0


async def test_an_abandoned_job_is_told_and_keeps_its_thread_until_it_ends(workers, gate):
    told, begun = [], threading.Event()

    def job(abandoned):
        begun.set()
        told.append(abandoned.wait(10))
        gate.wait(10)

    task = asyncio.create_task(workers.run(job))
    await until(begun.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: told == [True])
    assert workers.pending == 1
    gate.set()
    await until(lambda: workers.pending == 0)


async def test_an_abandoned_job_that_waits_never_runs(workers, gate):
    ran = []
    first = asyncio.create_task(workers.run(lambda abandoned: gate.wait(10)))
    await until(lambda: workers.pending == 1)
    second = asyncio.create_task(workers.run(lambda abandoned: ran.append(1)))
    await until(lambda: workers.pending == 2)
    second.cancel()
    await until(lambda: workers.pending == 1)
    gate.set()
    await first
    assert ran == []


async def test_a_job_whose_deadline_comes_first_never_runs(workers, gate):
    now, ran = asyncio.get_running_loop().time(), []
    with pytest.raises(ExpiredError):
        await asked_by(workers, lambda abandoned: ran.append(1), deadline=now)
    blocking = asyncio.create_task(workers.run(lambda abandoned: gate.wait(10)))
    await until(lambda: workers.pending == 1)
    late = asked_by(workers, lambda abandoned: ran.append(2), deadline=now + 0.05)
    on_time = asked_by(workers, lambda abandoned: ran.append(3), deadline=now + 60)
    await asyncio.sleep(0.1)
    gate.set()
    await blocking
    with pytest.raises(ExpiredError):
        await late
    await on_time
    assert ran == [3]


async def test_parties_take_turns(workers, gate):
    order = []
    blocking = asyncio.create_task(workers.run(lambda abandoned: gate.wait(10)))
    await until(lambda: workers.pending == 1)
    tasks = [asked_by(workers, lambda abandoned, p=tenant: order.append(p), license_id=tenant) for tenant in "aaaaab"]
    await until(lambda: workers.pending == 7)
    gate.set()
    await asyncio.gather(blocking, *tasks)
    assert order == ["a", "b", "a", "a", "a", "a"]


async def test_closing_ends_what_waits_and_takes_nothing_more(workers, gate):
    running = asyncio.create_task(workers.run(lambda abandoned: gate.wait(10)))
    await until(lambda: workers.pending == 1)
    waiting = asyncio.create_task(workers.run(lambda abandoned: None))
    await until(lambda: workers.pending == 2)
    workers.close()
    with pytest.raises(ServiceError, match="stopping"):
        await waiting
    gate.set()
    assert await running
    with pytest.raises(ServiceError, match="stopping"):
        await workers.run(lambda abandoned: None)
