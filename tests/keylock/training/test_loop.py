"""loop.py: the state is kept every so many steps and every so many seconds, and when a run is stopped."""

import pytest

from keylock.training import Silent
from keylock.training.loop import run_steps


def kept_after(steps, *, seconds_a_step, stop_at=None):
    """Runs steps on a clock of our own; returns after how many steps the state was kept."""
    taken, kept = [0], []

    def take_step():
        if taken[0] == stop_at:
            raise KeyboardInterrupt
        taken[0] += 1
        return {}

    def run():
        run_steps(
            "lock",
            steps,
            0,
            take_step=take_step,
            keep=lambda: kept.append(taken[0]),
            progress=Silent(),
            clock=lambda: taken[0] * seconds_a_step,
        )

    if stop_at is None:
        run()
    else:
        with pytest.raises(KeyboardInterrupt):
            run()
    return kept


def test_quick_steps_are_kept_by_their_number():
    assert kept_after(500, seconds_a_step=0.1) == [0, 200, 400, 500]


def test_slow_steps_are_kept_by_the_time():
    assert kept_after(20, seconds_a_step=46) == [0, 7, 14, 20]


def test_stopped_run_is_kept_where_it_was():
    assert kept_after(20, seconds_a_step=46, stop_at=9) == [0, 7, 9]
