"""How the run of a job ends: nothing disturbs what has to be ended, and no thread outlives Ray.

Whoever presses Ctrl-C twice, or at the end of a run, would otherwise break off what is put away: then folders stay, and
so do threads, of which one that lets go of a result without Ray ends the whole process without a word.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Final

__all__ = ["interrupted_once", "no_thread_left", "undisturbed", "undisturbed_end"]

_Handler = Callable[[int, FrameType | None], object]

_SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_LONGEST_END_S: Final = 10.0
_LONGEST_STOP_S: Final = 30.0
# Waits for work as long as the process lives, and holds nothing meanwhile.
_ENDLESS: Final = ("Prefetcher",)


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Lets Ctrl-C, SIGTERM and a closed terminal interrupt the block once, and not again while it ends for that reason.

    After half a minute they interrupt again: an exception that came to code which lets none out, such as that of an
    object which is removed, was lost.
    """
    with _handling(lambda before: _Once(before).handle):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keeps Ctrl-C, SIGTERM and a closed terminal until the block has ended; it is to take seconds at most."""
    came: list[int] = []
    try:
        with _handling(lambda _before: lambda number, _frame: came.append(number)):
            yield
    finally:
        if came:
            signal.raise_signal(came[0])


@contextmanager
def undisturbed_end(end: Callable[[], object]) -> Iterator[None]:
    """Calls something when the block ends, however that is, and lets nothing disturb it."""
    try:
        yield
    finally:
        with undisturbed():
            end()


class _Once:
    """Handles signals as they were handled before, unless one came a moment ago."""

    _heard_s: float | None = None

    def __init__(self, before: Mapping[int, _Handler]) -> None:
        self._before = before

    def handle(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self._heard_s is None or now_s - self._heard_s > _LONGEST_STOP_S:
            self._heard_s = now_s
            self._before[number](number, frame)


@contextmanager
def _handling(make: Callable[[Mapping[int, _Handler]], _Handler]) -> Iterator[None]:
    """Handles those signals for which this process has a handler; beside the main thread, which alone hears them, none.

    Args:
        make: From the handlers before to the one in the block.
    """
    mine = threading.current_thread() is threading.main_thread()
    found = {number: signal.getsignal(number) for number in (_SIGNALS if mine else ())}
    # The others end the process, or nothing.
    before = {number: handler for number, handler in found.items() if callable(handler)}
    handler = make(before)
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)


@contextmanager
def no_thread_left() -> Iterator[None]:
    """Waits at the end of the block for threads that were begun inside it, as Ray does to fetch results.

    One that lets go of a result after Ray was shut down ends the whole process at once, with code 1 and without a word.
    """
    before = set(threading.enumerate())
    try:
        yield
    finally:
        with undisturbed():
            end = time.monotonic() + _LONGEST_END_S
            for thread in set(threading.enumerate()) - before:
                if thread.name not in _ENDLESS:
                    thread.join(max(0.0, end - time.monotonic()))
