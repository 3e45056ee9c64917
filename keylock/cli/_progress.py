"""Progress of long commands on standard error, and a Ctrl-C that stops between two steps.

On a terminal the stage under way is drawn at the bottom; elsewhere, such as in the log of a batch job, there is a line
now and then.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from keylock.cli._console import StoppedError, stderr
from keylock.cli._log_lines import Lines
from keylock.cli._places import has_interrupted_run
from keylock.cli._stage import Stage
from keylock.signals import stopping_signals

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Display", "Taken", "counted", "counted_while_taken", "resumable_progress", "shown_progress"]

_TITLES = {
    "check": "try the lock before it is trained",
    "time": "time a few steps",
    "reference": "train the reference model",
    "lock": "lock the explanations",
    "measure": "measure the lock",
    "publish": "compile, sign and write",
    "evaluate": "compare maps",
    "faithfulness": "delete and insert pixels",
    "gate": "try near misses of the key",
    "attacks": "attack the lock",
    "blocks": "explain blocks of images",
}
# Their steps are many and each leaves a whole state behind. Other stages are left at once.
_STEPWISE = frozenset({"reference", "lock"})
_STOPPING = "stopping after this step; Ctrl-C again stops at once"
_DRAINING = "stopping after what is under way; Ctrl-C again stops at once"


class Face(Protocol):
    """Where progress is shown."""

    def begin(self, stage: Stage) -> None:
        """Show a new stage."""

    def step(self, stage: Stage) -> None:
        """Show that a step is done, or that one with a name begins."""

    def end(self, stage: Stage) -> None:
        """Show that it is over."""

    def say(self, text: str) -> None:
        """Print a line."""

    def warn(self, text: str) -> None:
        """Say something from within a signal handler."""


class Display:
    """Shows the progress of a run; a `keylock.training.Progress`."""

    def __init__(self, face: Face, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take where it is shown, and a clock in seconds."""
        self._face, self._clock = face, clock
        self._stage: Stage | None = None
        self._stepwise = self._stopping = False

    def start(self, stage: str, total: int, done: int) -> None:
        """Show a new stage."""
        self.finish()
        title, told = _TITLES.get(stage, stage), stage in _TITLES
        self._stage, self._stepwise = Stage(title, total, done, clock=self._clock, told=told), stage in _STEPWISE
        self._face.begin(self._stage)

    def doing(self, what: str) -> None:
        """Show what the step under way does."""
        if self._stage is not None:
            self._stage.doing = what
            self._face.step(self._stage)

    def advance(self, figures: Mapping[str, float]) -> None:
        """Move on by one step.

        Raises:
            KeyboardInterrupt: The user asked to stop; the step is done and nothing is half changed.
        """
        if self._stage is not None:
            self._stage.advance(figures)
            # Where steps have names the next one says how far it is.
            if not self._stage.doing:
                self._face.step(self._stage)
        if self._stopping:
            raise KeyboardInterrupt

    def finish(self) -> None:
        """End the stage, if there is one."""
        stage, self._stage, self._stepwise = self._stage, None, False
        if stage is not None:
            self._face.end(stage)

    def say(self, text: str) -> None:
        """Print a line."""
        self._face.say(text)

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Stop at the end of the step, at the second signal or outside of such steps at once."""
        if self._stopping or not self._stepwise:
            raise KeyboardInterrupt
        self._stopping = True
        self._face.warn(_STOPPING)


@contextmanager
def shown_progress() -> Iterator[Display]:
    """Show progress while the block runs, and let Ctrl-C, SIGTERM and a closed terminal stop it between two steps.

    Yields:
        What hears about the steps.
    """
    with _face() as face:
        display = Display(face)
        try:
            with _handled(display.on_signal):
                yield display
        finally:
            # What was broken off says how far it got.
            display.finish()


@contextmanager
def counted(total: int, title: str) -> Iterator[Callable[[], None]]:
    """Show how many of a number of things are done.

    Args:
        total: How many there are.
        title: What is done with them.

    Yields:
        What is called for each that is done.
    """
    with _counting(total, title) as (_, advance):
        yield advance


class Taken(Iterable[Any], Sized):
    """Things that are taken one after the other, in any thread, until a signal comes; their number is that of all."""

    def __init__(self, given: Sequence[Any], face: Face) -> None:
        """Take the things, and where it is said that no more are taken."""
        self._given, self._face = given, face
        self._stopping = False
        self.some_left = False

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._given)

    def __iter__(self) -> Iterator[Any]:
        """Yield them."""
        for one in self._given:
            if self._stopping:
                self.some_left = True
                return
            yield one

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Let no more be taken; at the second signal stop at once."""
        if self._stopping:
            raise KeyboardInterrupt
        self._stopping = True
        self._face.warn(_DRAINING)


@contextmanager
def counted_while_taken(given: Sequence[Any], title: str) -> Iterator[tuple[Taken, Callable[[], None]]]:
    """Show how many of some things are done; Ctrl-C, SIGTERM and a closed terminal let no more of them be begun.

    Yields:
        What gives them out, and what is called for each that is done.

    Raises:
        KeyboardInterrupt: At the end of the block, if things were left; at a second signal at once.
    """
    with _counting(len(given), title) as (face, advance):
        taken = Taken(given, face)
        with _handled(taken.on_signal):
            yield taken, advance
    if taken.some_left:
        raise KeyboardInterrupt


@contextmanager
def _counting(total: int, title: str) -> Iterator[tuple[Face, Callable[[], None]]]:
    """Show how many things are done; yield where that is shown, and what is called for each."""
    with _face() as face:
        display = Display(face)
        display.start(title, total, 0)
        try:
            yield face, lambda: display.advance({})
        finally:
            display.finish()


@contextmanager
def resumable_progress(work: "Path") -> Iterator[Display]:
    """Show the progress of a run that can be resumed; one that is stopped says so and ends with the code for that.

    Args:
        work: Where it keeps what it reached.

    Yields:
        What hears about the steps.
    """
    try:
        with shown_progress() as progress:
            yield progress
    except KeyboardInterrupt:
        if not has_interrupted_run(work):
            raise StoppedError("stopped; nothing was reached yet: run the same command again to start anew") from None
        kept = f"stopped; what was reached is kept in {work}: run the same command with --resume to go on"
        raise StoppedError(kept) from None


@contextmanager
def _face() -> Iterator[Face]:
    """Draw where the terminal can; write lines elsewhere, also where TERM is `dumb`."""
    if sys.stderr.isatty():
        console = stderr()
        if console.is_interactive:
            from keylock.cli._bars import Bars

            with Bars(console) as bars:
                yield bars
            return
    yield Lines()


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle Ctrl-C, SIGTERM and a closed terminal while the block runs; beside the main thread none."""
    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in (stopping_signals() if mine else ())}
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)
