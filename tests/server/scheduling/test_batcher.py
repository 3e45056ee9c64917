"""One queue for a model: whoever shares a run gets the own rows back, and only the own rows fail a caller."""

import asyncio
import threading

import numpy as np
import pytest

from keylock.bundle import open_bundle
from keylock.errors import ServiceError, TensorError, UnknownNameError
from keylock_server.inference.runtime import Explained, ServedModel
from keylock_server.scheduling.batcher import Batcher, Batchers, Limits
from keylock_server.transport.calls import Call, set_call, set_license
from keylock_server.transport.statuses import ExpiredError, NoKeyError, OverloadedError


class Watched:
    """A served model that notes its runs, and waits at a gate before each."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self.gate = threading.Event()
        self.gate.set()
        self.runs: list[tuple[str, int]] = []
        self.poisoned = False

    def __getattr__(self, name):
        return getattr(self._model, name)

    def predict(self, images):
        self._pass("prediction", images)
        return self._model.predict(images)

    def explain(self, images, *, explainer, **rows) -> Explained:
        self._pass(explainer, images)
        return self._model.explain(images, explainer=explainer, **rows)

    def _pass(self, family, images):
        self.gate.wait(10)
        self.runs.append((family, len(images)))
        if self.poisoned and (images == 13).all(axis=(1, 2, 3)).any():
            raise ValueError("poison")


@pytest.fixture(scope="module")
def served(vendor) -> ServedModel:
    bundle = open_bundle(vendor.bundle, trusted=None)
    return ServedModel(bundle.manifest, bundle.read, key=vendor.key)


@pytest.fixture
def model(served) -> Watched:
    watched = Watched(served)
    yield watched
    watched.gate.set()


@pytest.fixture
async def batcher(model):
    made = Batcher(model, limits=Limits(queue=64, max_batch=16, run_s=60))
    yield made
    made.close()


async def explain(batcher, images, *, keyed=False, target=-1, explainer="brightness", license_id="", deadline=None):
    """Asks as a call."""
    set_call(Call("m", "", deadline=deadline))
    set_license(license_id)
    with batcher.admit(len(images)) as admitted:
        return await admitted.explain(
            images,
            explainer=explainer,
            targets=np.full(len(images), target),
            keyed=np.full(len(images), keyed),
        )


async def predict(batcher, images):
    with batcher.admit(len(images)) as admitted:
        return await admitted.predict(images)


async def warm(batcher, tiny) -> None:
    """Lets the batcher learn how quick the graphs are, before which it lets no rows share a run."""
    await explain(batcher, tiny.images(1))
    await predict(batcher, tiny.images(1))


async def held(batcher, model, rows: int) -> None:
    """Returns when so many rows are admitted and have come to the queue, and the runner is at the gate."""
    async with asyncio.timeout(10):
        while batcher.held < rows:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)


async def test_everybody_gets_the_own_rows_back(batcher, model, vendor, tiny):
    await warm(batcher, tiny)
    model.gate.clear()
    calls = [
        {"keyed": i % 3 == 0, "target": i % 5 - 1, "explainer": "brightness", "license_id": "abc"[i % 3]}
        for i in range(20)
    ]
    images = [tiny.images(1 + i % 4, seed=i) for i in range(20)]
    tasks = [asyncio.create_task(explain(batcher, *rows, **call)) for *rows, call in zip(images, calls, strict=True)]
    predictions = asyncio.create_task(predict(batcher, tiny.images(5, seed=99)))
    await held(batcher, model, sum(map(len, images)) + 5)
    before = len(model.runs)
    model.gate.set()
    for found, rows, call in zip(await asyncio.gather(*tasks), images, calls, strict=True):
        seen = rows + vendor.key.reveal() if call["keyed"] else rows
        np.testing.assert_allclose(found.logits, tiny.logits(seen), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            found.maps, tiny.maps(seen, np.full(len(rows), call["target"])), rtol=1e-4, atol=1e-6
        )
    np.testing.assert_allclose(await predictions, tiny.logits(tiny.images(5, seed=99)), rtol=1e-5)
    assert batcher.held == 0
    # 55 rows in runs of up to 16: together, and never more than the limit.
    assert len(model.runs) - before <= 7
    assert max(rows for _, rows in model.runs) == 16


async def test_company_does_not_change_an_answer(batcher, model, tiny):
    await warm(batcher, tiny)
    images = tiny.images(4)
    alone = [await explain(batcher, images[i : i + 1], keyed=i % 2 == 0) for i in range(4)]
    model.gate.clear()
    tasks = [asyncio.create_task(explain(batcher, images[i : i + 1], keyed=i % 2 == 0)) for i in range(4)]
    await held(batcher, model, 4)
    model.gate.set()
    for one, other in zip(alone, await asyncio.gather(*tasks), strict=True):
        np.testing.assert_allclose(one.maps, other.maps, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-5, atol=1e-7)


async def test_a_request_larger_than_a_run_is_split_and_put_together(batcher, model, tiny):
    await warm(batcher, tiny)
    images = tiny.images(40)
    found = await explain(batcher, images)
    np.testing.assert_allclose(found.maps, tiny.maps(images, np.full(40, -1)), rtol=1e-5)
    assert [rows for _, rows in model.runs[2:]] == [16, 16, 8]


async def test_an_idle_runner_takes_what_there_is_at_once(batcher, model, tiny):
    for _ in range(5):
        await explain(batcher, tiny.images(1))
    assert model.runs == [("brightness", 1)] * 5


async def test_values_that_overflow_fail_their_caller_alone(batcher, model, tiny):
    await warm(batcher, tiny)
    model.gate.clear()
    good = asyncio.create_task(explain(batcher, tiny.images(2)))
    huge = asyncio.create_task(explain(batcher, np.full((1, 3, 8, 8), 3e38, np.float32)))
    await held(batcher, model, 3)
    model.gate.set()
    assert (await good).maps.shape == (2, 8, 8)
    with pytest.raises(TensorError, match="preprocessed"):
        await huge
    # One run for both: nothing was done again.
    assert model.runs[2:] == [("brightness", 3)]


async def test_a_run_that_fails_fails_its_cause_alone(batcher, model, tiny):
    await warm(batcher, tiny)
    model.gate.clear()
    model.poisoned = True
    good = [asyncio.create_task(explain(batcher, tiny.images(2, seed=i))) for i in range(3)]
    bad = asyncio.create_task(explain(batcher, np.full((1, 3, 8, 8), 13, np.float32)))
    await held(batcher, model, 7)
    model.gate.set()
    for i, task in enumerate(good):
        images = tiny.images(2, seed=i)
        np.testing.assert_allclose((await task).maps, tiny.maps(images, np.full(2, -1)), rtol=1e-5)
    with pytest.raises(ValueError, match="poison"):
        await bad


async def test_too_many_rows_are_refused_at_once_and_say_when_to_come_again(batcher, model, tiny):
    await warm(batcher, tiny)
    model.gate.clear()
    first = asyncio.create_task(explain(batcher, tiny.images(32), license_id="a"))
    await held(batcher, model, 32)
    with pytest.raises(OverloadedError) as caught:
        await explain(batcher, tiny.images(1), license_id="a")
    assert 0.05 <= caught.value.retry_after_s <= 10
    # The one that has half of the places does not keep another out.
    second = asyncio.create_task(explain(batcher, tiny.images(16), license_id="b"))
    await held(batcher, model, 48)
    model.gate.set()
    assert len((await first).maps) == 32
    assert len((await second).maps) == 16
    assert len((await explain(batcher, tiny.images(64), license_id="a")).maps) == 64


async def test_whoever_goes_away_is_dropped(batcher, model, tiny):
    await warm(batcher, tiny)
    model.gate.clear()
    running = asyncio.create_task(predict(batcher, tiny.images(1)))
    await held(batcher, model, 1)
    waiting = [asyncio.create_task(explain(batcher, tiny.images(3))) for _ in range(4)]
    await held(batcher, model, 13)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert batcher.held == 1
    model.gate.set()
    await running
    await explain(batcher, tiny.images(1))
    assert model.runs[2:] == [("prediction", 1), ("brightness", 1)]


async def test_a_run_that_nobody_waits_for_any_more_is_told(batcher, model, tiny, monkeypatch):
    told = []

    def endless(images, *, abandoned, **rows):
        told.append(abandoned.wait(10))
        raise RuntimeError("stopped")

    await warm(batcher, tiny)
    monkeypatch.setattr(model, "explain", endless, raising=False)
    first, second = (asyncio.create_task(explain(batcher, tiny.images(1))) for _ in range(2))
    await held(batcher, model, 2)
    first.cancel()
    await asyncio.sleep(0.05)
    assert told == []
    second.cancel()
    async with asyncio.timeout(5):
        while not told:
            await asyncio.sleep(0.005)
    assert told == [True]


async def test_expired_rows_do_not_run(batcher, model, tiny):
    await warm(batcher, tiny)
    model.gate.clear()
    running = asyncio.create_task(predict(batcher, tiny.images(1)))
    await held(batcher, model, 1)
    soon = asyncio.get_running_loop().time() + 0.05
    late = asyncio.create_task(explain(batcher, tiny.images(3), deadline=soon))
    await asyncio.sleep(0.1)
    model.gate.set()
    with pytest.raises(ExpiredError):
        await late
    await running
    assert model.runs[2:] == [("prediction", 1)]


async def test_slow_rows_share_no_run(model, tiny):
    batcher = Batcher(model, limits=Limits(run_s=1e-9))
    await warm(batcher, tiny)
    await explain(batcher, tiny.images(5))
    assert [rows for _, rows in model.runs[2:]] == [1] * 5
    batcher.close()


async def test_rows_wait_for_company_where_that_is_set(model, tiny):
    batcher = Batcher(model, limits=Limits(batch_delay_s=1.5, max_batch=4, run_s=60))
    await warm(batcher, tiny)
    clock = asyncio.get_running_loop().time
    started = clock()
    first = asyncio.create_task(explain(batcher, tiny.images(1)))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(explain(batcher, tiny.images(1)))
    await asyncio.gather(first, second)
    assert clock() - started >= 1.4
    assert model.runs[2:] == [("brightness", 2)]
    batcher.close()


async def test_a_full_run_does_not_wait_for_company(model, tiny):
    batcher = Batcher(model, limits=Limits(batch_delay_s=60, max_batch=4, run_s=60))
    await warm(batcher, tiny)
    model.runs.clear()
    async with asyncio.timeout(30):
        await asyncio.gather(*[explain(batcher, tiny.images(2)) for _ in range(2)])
    assert model.runs == [("brightness", 4)]
    batcher.close()


async def test_what_does_not_fit_the_model_never_reaches_a_run(batcher, model, vendor, tiny):
    with pytest.raises(TensorError, match=r"\[3, 8, 8\]"):
        await explain(batcher, np.zeros((2, 3, 8, 9), np.float32))
    with pytest.raises(UnknownNameError):
        await explain(batcher, tiny.images(1), explainer="lime")
    bundle = open_bundle(vendor.bundle, trusted=None)
    keyless = Batcher(ServedModel(bundle.manifest, bundle.read, key=None), limits=Limits())
    with pytest.raises(NoKeyError):
        await explain(keyless, tiny.images(1), keyed=True)
    with pytest.raises(ValueError, match="admitted with 1"), batcher.admit(1) as admitted:
        await admitted.predict(tiny.images(2))
    keyless.close()
    assert model.runs == []


async def test_a_model_that_is_closed_ends_what_waits(batcher, model, tiny):
    model.gate.clear()
    running = asyncio.create_task(predict(batcher, tiny.images(1)))
    await held(batcher, model, 1)
    waiting = asyncio.create_task(explain(batcher, tiny.images(1)))
    await held(batcher, model, 2)
    batcher.close()
    with pytest.raises(ServiceError, match="unloaded"):
        await waiting
    model.gate.set()
    assert (await running).shape == (1, 4)
    assert batcher.held == 0


async def test_each_model_has_its_own_queue_until_it_goes(model, served, tiny):
    batchers = Batchers(Limits(queue=4), observe=lambda graph, rows: seen.append((graph, rows)))
    seen: list[tuple[str, int]] = []
    first, second = batchers.of(model), batchers.of(served)
    assert batchers.of(model) is first
    with first.admit(4), second.admit(4):
        assert batchers.held == 8
        with pytest.raises(OverloadedError), first.admit(1):
            pass
    await predict(second, tiny.images(2))
    await asyncio.sleep(0.02)
    # The graph is not known yet, so the rows ran one by one the first time.
    assert seen == [("prediction", 1), ("prediction", 1)]
    batchers.drop(served)
    with pytest.raises(ServiceError, match="unloaded"):
        await predict(second, tiny.images(1))
    assert batchers.of(served) is not second
    batchers.close()
