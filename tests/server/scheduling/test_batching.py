"""Who is next, without clocks and threads: tenants take turns, families do not mix, nobody is shut out or forgotten."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keylock_server.scheduling.batching import Job, QueueQuota, RowQueue, ThroughputEstimate, fair_shares


def queue_of(*jobs: Job[str]) -> RowQueue[str]:
    queue: RowQueue[str] = RowQueue()
    for job in jobs:
        queue.add(job)
    return queue


def job(name: str, rows: int = 1, *, tenant: str = "a", family: str = "f", **fields) -> Job[str]:
    return Job(name, rows, family, tenant, **fields)


def take(queue: RowQueue[str], room: int) -> list[tuple[str, int, int]]:
    return [(part.job.payload, part.start, part.stop) for part in queue.take(lambda family: room)]


def test_rows_of_different_parties_share_a_batch():
    queue = queue_of(job("a1", 3, tenant="a"), job("b1", 2, tenant="b"))
    assert take(queue, 8) == [("a1", 0, 3), ("b1", 0, 2)]
    assert queue.waiting == 0


def test_a_thousand_rows_of_one_party_do_not_keep_another_waiting():
    queue = queue_of(*[job(f"a{i}", 100, tenant="a") for i in range(10)])
    assert take(queue, 32) == [("a0", 0, 32)]
    queue.add(job("b", 2, tenant="b"))
    queue.add(job("c", 1, tenant="c"))
    # In the next batch already, and the rest of it is for who has more.
    assert take(queue, 32) == [("a0", 32, 61), ("b", 0, 2), ("c", 0, 1)]
    assert take(queue, 32) == [("a0", 61, 93)]
    assert queue.waiting == 1000 - 93


def test_parties_beyond_the_room_are_first_in_the_next_batch():
    queue = queue_of(*[job(name, 5, tenant=name) for name in "abcde"])
    assert [name for name, _, _ in take(queue, 2)] == ["a", "b"]
    assert [name for name, _, _ in take(queue, 2)] == ["c", "d"]
    assert [name for name, _, _ in take(queue, 2)] == ["e", "a"]


def test_families_do_not_mix_and_each_has_its_turn():
    queue = queue_of(
        job("a1", 4, tenant="a", family="prediction"),
        job("b1", 1, tenant="b", family="gradient"),
        job("c1", 1, tenant="c", family="prediction"),
        job("b2", 1, tenant="b", family="prediction"),
    )
    # `a` leads; `c`, and `b` out of its order, fill up.
    assert take(queue, 4) == [("a1", 0, 2), ("b2", 0, 1), ("c1", 0, 1)]
    # The next in the line is whoever was served longest ago: `a` again, before `b`, which was served after it.
    assert take(queue, 4) == [("a1", 2, 4)]
    assert take(queue, 4) == [("b1", 0, 1)]
    assert queue.waiting == 0


def test_room_depends_on_the_family():
    queue = queue_of(job("a", 9, family="slow"), job("b", 9, tenant="b", family="fast"))
    room = {"slow": 1, "fast": 6}.__getitem__
    assert [part.stop - part.start for part in queue.take(room)] == [1]
    assert [part.stop - part.start for part in queue.take(room)] == [6]


def test_dropped_and_expired_rows_never_run():
    first, second, third = job("1", 5), job("2", 5, deadline=10.0), job("3", 5, tenant="b", deadline=11.0)
    queue = queue_of(first, second, third)
    assert take(queue, 2) == [("1", 0, 1), ("3", 0, 1)]
    queue.remove(first)
    queue.remove(first)  # A second time changes nothing.
    assert queue.waiting == 9
    assert queue.drop_expired(9.99) == []
    assert queue.drop_expired(10.0) == [second]
    assert take(queue, 8) == [("3", 1, 5)]
    queue.remove(third)
    assert queue.waiting == 0


def test_rows_wait_for_others_until_the_batch_is_full_or_the_time_is_over():
    queue = queue_of(job("a", 2, arrived=5.0), job("b", 1, tenant="b", family="g", arrived=4.0))
    assert queue.due(lambda family: 4, delay_s=0.5) == 4.5
    queue.add(job("c", 2, tenant="c", arrived=6.0))
    assert queue.due(lambda family: 4, delay_s=0.5) == float("-inf")


def test_clear_returns_everything_that_waits():
    queue = queue_of(job("a", 2), job("b", 1, tenant="b"))
    assert [dropped.payload for dropped in queue.clear()] == ["a", "b"]
    assert queue.waiting == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from("abc"), st.sampled_from("fg")), min_size=1, max_size=20),
    st.integers(1, 7),
)
def test_every_row_runs_once_and_in_its_order(jobs, room):
    queue = queue_of(
        *[job(str(i), rows, tenant=tenant, family=family) for i, (rows, tenant, family) in enumerate(jobs)]
    )
    ran: dict[str, list[int]] = {}
    turns = 0
    while queue.waiting:
        parts = queue.take(lambda family: room)
        assert len({part.job.family for part in parts}) == 1
        assert 0 < sum(part.stop - part.start for part in parts) <= room
        for part in parts:
            ran.setdefault(part.job.payload, []).extend(range(part.start, part.stop))
        turns += 1
    assert ran == {str(i): list(range(rows)) for i, (rows, _, _) in enumerate(jobs)}
    assert turns <= sum(rows for rows, _, _ in jobs)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=8), st.integers(0, 60))
def test_shares_are_those_of_taking_turns(wanted, room):
    shares, left = [0] * len(wanted), room
    while left and shares != wanted:
        for i, want in enumerate(wanted):
            if left and shares[i] < want:
                shares[i], left = shares[i] + 1, left - 1
    assert fair_shares(wanted, room) == shares


def test_a_tenant_may_have_as_many_places_as_it_leaves_free():
    quota = QueueQuota(100)
    assert quota.take("greedy", 40)
    assert not quota.take("greedy", 21)
    assert quota.take("greedy", 10)
    assert not quota.take("greedy", 1)
    assert quota.take("second", 25)
    assert not quota.take("second", 1)
    assert quota.take("third", 12)
    assert quota.held == 87
    quota.give_back("greedy", 40)
    quota.give_back("greedy", 10)
    assert quota.take("second", 10)
    quota.give_back("second", 25)
    quota.give_back("second", 10)
    quota.give_back("third", 12)
    assert quota.held == 0
    # Alone, a request as large as everything still fits.
    assert quota.take("anybody", 100)


def test_newcomers_fit_however_many_are_greedy():
    quota = QueueQuota(256)
    for i in range(7):
        while quota.take(f"greedy {i}", 1):
            pass
    assert quota.take("newcomer", 1)


def test_pace_limits_how_many_rows_fit_into_a_run():
    throughput = ThroughputEstimate()
    assert (throughput.rows_within(1.0, "f"), throughput.seconds_for(10)) == (1, 0.0)
    throughput.note("f", rows=4, seconds=0.4)
    assert throughput.rows_within(1.0, "f") == pytest.approx(10, abs=1)
    throughput.note("g", rows=1, seconds=3.0)
    assert throughput.rows_within(1.0, "g") == 1
    assert throughput.seconds_for(10) == pytest.approx(10 * (0.1 + 0.2 * 2.9))
    # A stall is forgotten again.
    for _ in range(30):
        throughput.note("g", rows=1, seconds=0.01)
    assert throughput.rows_within(1.0, "g") > np.float64(40)
