"""How a run of a job ends: signals that come meanwhile, and threads."""

import re
import signal
import socket
import threading
import time
from contextlib import suppress

import pytest

from keylock.bulk.ending import interrupted_once, no_thread_left, undisturbed, undisturbed_end
from keylock.bulk.watching import watched
from keylock.errors import InputError, ServiceError


@pytest.fixture(params=["SIGINT", "SIGTERM"])
def number(request):
    """A signal that raises KeyboardInterrupt, as commands of keylock have it."""
    found = getattr(signal, request.param)
    before = signal.signal(found, signal.default_int_handler)
    yield found
    signal.signal(found, before)


def test_threads_of_ray_end_before_it_is_shut_down():
    # One that outlives Ray ends the process without a word, as it did in half of the jobs whose quota ended.
    threads = [threading.Thread(target=time.sleep, args=(0.2,), daemon=True) for _ in range(3)]
    with suppress(InputError), no_thread_left():
        for thread in threads:
            thread.start()
        raise InputError("stop")
    assert not any(thread.is_alive() for thread in threads)


def test_signal_waits_until_what_is_not_disturbed_has_ended(number):
    done = []

    def work():
        with undisturbed():
            signal.raise_signal(number)
            done.append("all of it")
        done.append("more")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_end_is_reached_whatever_ends_the_block_and_however_often(number):
    done = []

    def end():
        signal.raise_signal(number)
        done.append("all of it")

    with pytest.raises(KeyboardInterrupt), undisturbed_end(end):
        raise InputError("stop")
    assert done == ["all of it"]


def test_block_is_interrupted_once_while_it_ends(number):
    done = []

    def work():
        try:
            signal.raise_signal(number)
            done.append("more")
        finally:
            signal.raise_signal(number)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt), interrupted_once():
        work()
    assert done == ["all of it"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_interrupt_that_was_lost_is_followed_by_one_that_is_not(number, monkeypatch):
    with interrupted_once():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.raise_signal(number)
        monkeypatch.setattr("keylock.bulk.ending._LONGEST_STOP_S", 0.0)
        time.sleep(0.001)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_signals_are_left_alone_beside_the_main_thread():
    ended = []

    def work():
        with interrupted_once(), undisturbed():
            ended.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [signal.getsignal(signal.SIGINT)]


@pytest.fixture
def interruptible(monkeypatch):
    """Ctrl-C as a program in the foreground has it, and a watch that looks often."""
    monkeypatch.setattr("keylock.bulk.watching._EVERY_S", 0.05)
    monkeypatch.setattr("keylock.bulk.watching._SILENCE_OF_HEAD_S", 0.5)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def places():
    """Two that answer, and their addresses."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        yield {name: (it, f"127.0.0.1:{it.getsockname()[1]}") for name, it in (("head", one), ("node", two))}


@pytest.mark.parametrize("lost", ["head", "node"])
def test_job_ends_with_an_error_when_ray_does_not_answer_any_more(interruptible, places, lost):
    addresses = {name: address for name, (_, address) in places.items()}
    heard = []

    def work():
        with watched(**addresses):
            time.sleep(2)
            heard.append("both")
            places[lost][0].close()
            time.sleep(30)
            heard.append("nothing")

    with pytest.raises(ServiceError, match=f"Ray at {re.escape(addresses[lost])} does not answer any more"):
        work()
    assert heard == ["both"]


def test_ctrl_c_is_what_it_is_while_ray_answers(interruptible, places):
    with pytest.raises(KeyboardInterrupt), watched(**{name: address for name, (_, address) in places.items()}):
        signal.raise_signal(signal.SIGINT)
    for thread in threading.enumerate():
        if thread.name == "keylock-ray":
            thread.join(10)
            assert not thread.is_alive()
