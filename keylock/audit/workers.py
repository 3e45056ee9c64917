"""Processes that share the tasks of an audit: each is a copy of this one, and computes in one thread.

What a task finds depends on the task alone, not on who does it or when, so that results are those of a single process.
A task whose process is lost is left to whoever waits for it.
"""

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Final, NamedTuple, Self

import torch

from keylock.training import Progress

__all__ = ["Workers"]

_STAGE: Final = "attacks"
_SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_TOLD_EVERY_S: Final = 0.25
_STOP_S: Final = 5.0

Do = Callable[[Any, Progress], object]
"""From a task and what hears about its steps to what was found, which can be pickled."""


class Workers:
    """Does tasks in processes of its own; a context manager, which ends them all however its block ends.

    They are made by `fork` when the block begins, so that whatever `do` reaches is in them as it is then and takes no
    memory until it is changed. Signals and the terminal are left to this process; where it is gone, they end too.
    """

    def __init__(
        self,
        do: Do,
        count: int,
        progress: Progress,
        *,
        then: Callable[[Any, Any], None] = lambda _task, _found: None,
    ) -> None:
        """Prepare.

        Args:
            do: Does a task.
            count: How many processes there are.
            progress: Hears how many tasks are done, and which are under way.
            then: Is called in this process with each task that was done and what was found; may submit more.
        """
        self._do, self._count, self._progress, self._then = do, count, progress, then
        self._members: list[_Member] = []
        self._waiting: deque[Hashable] = deque()
        self._found: dict[Hashable, object] = {}
        self._known: set[Hashable] = set()
        self._listed: set[Hashable] = set()

    def __enter__(self) -> Self:
        """Start the processes."""
        context = multiprocessing.get_context("fork")
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            for _ in range(self._count):
                ours, theirs = context.Pipe()
                lines = [*(member.line for member in self._members), ours]
                process = context.Process(target=_serve, args=(self._do, theirs, lines), daemon=True)
                with warnings.catch_warnings():
                    # Python warns of threads in general; those of torch and of the display are not needed in a copy.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    process.start()
                theirs.close()
                self._members.append(_Member(process, ours))
        except BaseException:
            self.__exit__()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return self

    def __exit__(self, *_error: object) -> None:
        """End every process."""
        for member in self._members:
            member.process.terminate()
        for member in self._members:
            member.end()
        self._members.clear()

    def start(self, tasks: Sequence[Hashable]) -> None:
        """Submit tasks, and show how many of them are done."""
        self._listed = set(tasks)
        self._progress.start(_STAGE, len(self._listed), 0)
        for task in tasks:
            self.submit(task)

    def submit(self, task: Hashable, *, soon: bool = False) -> None:
        """Have a task done; one that was submitted before is not done again.

        Args:
            task: Its text says what it is. It can be pickled.
            soon: Whether it is to be done before those that wait.
        """
        if task in self._known:
            return
        self._known.add(task)
        (self._waiting.appendleft if soon else self._waiting.append)(task)

    def take(self, task: Hashable) -> object | None:
        """Wait for a task, and return what was found; None if it was not submitted, could not be done, or was lost."""
        while task in self._known and task not in self._found:
            self._go_on()
        return self._found.get(task)

    def finish(self) -> None:
        """Wait for every task."""
        while self._known - self._found.keys():
            self._go_on()

    def _go_on(self) -> None:
        """Hand out what can be handed out, and wait for news."""
        for member in self._members:
            if member.task is None and self._waiting:
                self._hand_out(member, self._waiting.popleft())
        if not self._members:
            while self._waiting:
                self._settle(self._waiting.popleft(), None)
            return
        by_line = {member.line: member for member in self._members}
        for line in wait(list(by_line)):
            self._hear(by_line[line])  # type: ignore[index]

    def _hand_out(self, member: "_Member", task: Hashable) -> None:
        member.task, member.says = task, str(task)
        # One that is gone is noticed by whoever listens next.
        with suppress(OSError):
            member.line.send(task)
        self._tell()

    def _hear(self, member: "_Member") -> None:
        try:
            news = member.line.recv()
        except (EOFError, OSError):
            self._members.remove(member)
            member.end()
            if member.task is not None:
                self._settle(member.task, None)
            return
        if news.says:
            member.says = news.says
            self._tell()
        else:
            task, member.task, member.says = member.task, None, ""
            self._settle(task, news.found)

    def _settle(self, task: Hashable, found: object | None) -> None:
        self._found[task] = found
        if task in self._listed:
            self._progress.advance({})
            if self._listed <= self._found.keys():
                self._progress.finish()
        if found is not None:
            self._then(task, found)

    def _tell(self) -> None:
        self._progress.doing(", ".join(member.says for member in self._members if member.says))


@dataclass(eq=False)
class _Member:
    """One of the processes.

    Attributes:
        process: The process.
        line: Tasks go out on it, news come in.
        task: What it does; None where it waits for a task.
        says: How far that is.
    """

    process: "multiprocessing.process.BaseProcess"
    line: Connection
    task: Hashable | None = None
    says: str = ""

    def end(self) -> None:
        """Wait for the end of the process, which was told to end or is gone."""
        self.process.join(_STOP_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.line.close()


class _News(NamedTuple):
    """What a process tells: how far a task is, or what was found, and None where it could not be done."""

    says: str = ""
    found: object | None = None


class _Teller:
    """Tells the process that hands out tasks how far one is, a few times a second."""

    def __init__(self, line: Connection) -> None:
        self._line = line
        self._stage, self._total, self._done, self._told_s = "", 0, 0, 0.0

    def start(self, stage: str, total: int, done: int) -> None:
        self._stage, self._total, self._done = stage, total, done
        self._tell()

    def doing(self, _what: str) -> None:
        pass

    def advance(self, _figures: Mapping[str, float]) -> None:
        self._done += 1
        self._tell()

    def finish(self) -> None:
        pass

    def _tell(self) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= _TOLD_EVERY_S:
            self._told_s = now_s
            self._line.send(_News(says=f"{self._stage} {self._done}/{self._total}"))


def _serve(do: Do, line: Connection, lines: Sequence[Connection]) -> None:
    """Do tasks until there are no more, in a process of its own.

    Args:
        do: Does a task.
        line: Where tasks come from.
        lines: Ends of this and other processes' lines that are not ours: with a copy left open, nobody's end is heard.
    """
    for other in lines:
        other.close()
    # Ctrl-C and a closed terminal reach all processes of a command; the first of them decides.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    # The locks of streams may be held by a thread that is not in this copy.
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process is
    torch.set_num_threads(1)
    if not _has_gradients():
        return
    with suppress(EOFError, OSError):
        while True:
            task = line.recv()
            try:
                news = _News(found=do(task, _Teller(line)))
            except BrokenPipeError:
                return
            except Exception:
                # Whoever waits for it does it again and meets the same error, with all that belongs to it.
                news = _News()
            line.send(news)


def _has_gradients() -> bool:
    """Return whether gradients can be taken: not in a copy of a process that took some beside a graphics card."""
    try:
        one = torch.ones(1, requires_grad=True)
        torch.autograd.grad(one.sum(), one)
    except RuntimeError:
        return False
    return True
