"""Answers without a license take as long as those with one."""

import asyncio
import time

import pytest
from support import slow_charges

from keylock_server.metering.response_padding import Alarm, CallTimes, ResponsePadding


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class FakeAlarm(Alarm):
    def __init__(self):
        super().__init__()
        self.asked = []

    async def after(self, seconds):
        self.asked.append(seconds)


def times_of(*, work, beside):
    clock = Clock()
    times = CallTimes(clock)
    with times.working():
        clock.now += work
    clock.now += beside
    return times


def test_work_does_not_count():
    assert times_of(work=5.0, beside=0.25).beside_work() == 0.25


def test_what_only_licensed_calls_do_counts_though_it_lies_in_the_work():
    clock = Clock()
    times = CallTimes(clock)
    with times.working():
        clock.now += 5.0
        with times.charging():
            clock.now += 0.5
    clock.now += 0.25
    assert times.beside_work() == 0.75


def test_a_call_without_a_license_waits_for_the_rest_of_what_a_license_took():
    alarm = FakeAlarm()
    even = ResponsePadding(wake=alarm)

    async def calls():
        await even.leave(times_of(work=1.0, beside=0.001), licensed=False)
        await even.leave(times_of(work=9.0, beside=0.03), licensed=True)
        await even.leave(times_of(work=1.0, beside=0.001), licensed=False)
        await even.leave(times_of(work=1.0, beside=7.0), licensed=True)
        for _ in range(40):
            await even.leave(times_of(work=1.0, beside=0.0), licensed=False)

    asyncio.run(calls())
    # Nobody waits before a license was charged, and no longer than a second for one that waited for the store.
    assert alarm.asked[0] == pytest.approx(0.029)
    assert {round(seconds, 9) for seconds in alarm.asked[1:]} == {0.03, 1.0}


def test_waits_that_end_late_shorten_those_that_follow():
    clock = Clock()

    class LateAlarm(FakeAlarm):
        async def after(self, seconds):
            await super().after(seconds)
            clock.now += max(0.0, seconds) + 0.004

    alarm = LateAlarm()
    even = ResponsePadding(wake=alarm)

    async def calls():
        await even.leave(times_of(work=1.0, beside=0.02), licensed=True)
        for _ in range(80):
            await even.leave(CallTimes(clock), licensed=False)

    asyncio.run(calls())
    assert alarm.asked[0] == pytest.approx(0.02)
    assert alarm.asked[-1] == pytest.approx(0.016, abs=1e-4)


def test_nobody_waits_where_it_is_switched_off():
    even = ResponsePadding(wake=None)

    async def calls():
        await even.leave(times_of(work=0.0, beside=1.0), licensed=True)
        await even.leave(times_of(work=0.0, beside=0.0), licensed=False)

    began = time.perf_counter()
    asyncio.run(calls())
    even.close()
    assert time.perf_counter() - began < 0.9


def test_waits_end_and_never_early():
    alarm, ended = Alarm(), []

    async def wait(seconds):
        began = time.perf_counter()
        await alarm.after(seconds)
        ended.append(seconds)
        assert time.perf_counter() - began >= seconds

    async def together():
        await asyncio.gather(*(wait(seconds) for seconds in (0.12, 0.0, 0.04, 0.08)))

    asyncio.run(together())
    alarm.close()
    assert sorted(ended) == [0.0, 0.04, 0.08, 0.12]


def test_closing_ends_waits_and_one_that_was_given_up_harms_nobody():
    alarm = Alarm()

    async def wait():
        given_up = asyncio.create_task(alarm.after(60))
        waiting = asyncio.create_task(alarm.after(60))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.to_thread(alarm.close)
        await asyncio.wait_for(waiting, 5)
        await alarm.after(60)  # After the end nobody waits.

    asyncio.run(wait())


@pytest.mark.parametrize("even", [True, False])
def test_the_time_of_a_decoy_does_not_tell_that_nobody_was_charged(start_server, vendor, tiny, monkeypatch, even):
    waits = slow_charges(monkeypatch)
    calls, image = start_server(pad_response_times=even), tiny.tensor_image(tiny.images(1)[0])
    calls.explain(image, token=vendor.grant().token)
    assert waits == []
    answer = calls.explain(image)
    assert not answer.results[0].keyed
    assert [seconds > 0 for seconds in waits] == [True] * even


def test_sizes_differ_by_usage_and_receipt_alone(start_server, vendor, tiny):
    calls, image = start_server(open_targets=True), tiny.tensor_image(tiny.images(1)[0])
    licensed = calls.explain(image, token=vendor.grant().token, request_id="size", target_index=0)
    public = calls.explain(image, request_id="size", target_index=0)
    assert (licensed.results[0].keyed, public.results[0].keyed) == (True, False)
    assert licensed.ByteSize() > public.ByteSize()
    assert {field.name for field, _ in licensed.ListFields()} - {"usage", "receipt"} == {
        field.name for field, _ in public.ListFields()
    }
    for result in (licensed.results[0], public.results[0]):
        # What is keyed says so in one byte each, and numbers and the order of classes are those of the prediction.
        assert result.keyed == result.prediction.keyed
        result.keyed = result.prediction.keyed = False
        result.prediction.ClearField("label")
        result.prediction.ClearField("index")
        result.prediction.ClearField("top")
    licensed.ClearField("usage")
    licensed.ClearField("receipt")
    assert licensed.ByteSize() == public.ByteSize()
