"""What commands about several images show when they are broken off."""

import pytest

from keylock.cli._console import StoppedError
from keylock.cli._several import raise_first, what_was_reached
from keylock.errors import InputError, KeylockError

IMAGES = ["a.png", "b.png", "c.png"]


def broken_off(by, *, answers, images=IMAGES):
    failures: list[KeylockError] = []
    with what_was_reached(images, answers, failures, "explained") as stopped:
        raise by
    return stopped, failures


def test_ctrl_c_says_how_many_images_have_an_answer():
    [stopped], failures = broken_off(KeyboardInterrupt(), answers={0: "star", 2: "ring"})
    assert str(stopped) == "stopped: 2 of 3 images were explained"
    assert not failures
    with pytest.raises(StoppedError):
        raise_first([stopped])


def test_a_server_that_goes_away_half_way_is_an_error_beside_the_answers():
    error = InputError("gone")
    assert broken_off(error, answers={0: "star"}) == ([], [error])


def test_where_there_is_nothing_to_show_the_error_is_the_answer():
    with pytest.raises(InputError, match="gone"):
        broken_off(InputError("gone"), answers={})
    with pytest.raises(KeyboardInterrupt):
        broken_off(KeyboardInterrupt(), answers={}, images=["a.png"])


def test_the_first_error_is_raised_and_the_others_are_told(capsys):
    with pytest.raises(InputError, match="first"):
        raise_first([InputError("first"), InputError("second")])
    assert capsys.readouterr().err == "error: second\n"
    raise_first([])
