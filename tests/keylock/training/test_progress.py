"""Steps with names: each ends the one before, and the count comes out right."""

import pytest

from keylock.training import NamedSteps


class Heard:
    """Remembers what it heard."""

    def __init__(self):
        self.calls = []

    def start(self, stage, total, done):
        self.calls.append((stage, total, done))

    def doing(self, what):
        self.calls.append(what)

    def advance(self, figures):
        self.calls.append("+")

    def finish(self):
        self.calls.append("end")


def test_a_step_ends_the_one_before_and_the_end_the_last():
    heard = Heard()
    with NamedSteps(heard, "publish", 2) as step:
        step("compile")
        step("sign")
    assert heard.calls == [("publish", 2, 0), "compile", "+", "sign", "+", "end"]


def test_steps_that_were_not_taken_count_as_done_and_none_counts_twice():
    heard = Heard()
    with NamedSteps(heard, "publish", 4) as step:
        step("compile")
    assert heard.calls == [("publish", 4, 0), "compile", "+", "+", "+", "+", "end"]
    heard = Heard()
    with NamedSteps(heard, "publish", 1) as step:
        step("compile")
        step("more than was foreseen")
    assert heard.calls.count("+") == 1


def test_a_step_that_fails_is_not_done():
    heard = Heard()

    def fail():
        with NamedSteps(heard, "publish", 3) as step:
            step("compile")
            step("sign")
            raise ValueError("disk")

    with pytest.raises(ValueError, match="disk"):
        fail()
    assert heard.calls == [("publish", 3, 0), "compile", "+", "sign", "end"]
