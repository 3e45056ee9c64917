"""Progress of long commands on standard error, and a Ctrl-C that stops between two steps.

On a terminal a bar for every stage, with the terms of the loss and live fidelity and leakage below; elsewhere, such as
in the log of a batch job, a line now and then.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from keylock.cli._console import note, stderr

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import Progress, TaskID

__all__ = ["Display", "counted", "describe_figures", "resumable_progress", "shown_progress"]

_INTERRUPTED = 130

_TITLES = {
    "reference": "train the reference model",
    "lock": "lock the explanations",
    "measure": "measure the lock",
    "publish": "compile, sign and write",
    "evaluate": "compare maps",
    "faithfulness": "delete and insert pixels",
    "gate": "try near misses of the key",
}
# Their steps are many and each leaves a whole state behind. Other stages are left at once.
_STEPWISE = frozenset({"reference", "lock"})
_LIVE = ("fidelity", "leakage")
_SMOOTHING = 0.9
_LINES_PER_STAGE = 10


class Display:
    """Shows the progress of a run; a `keylock.training.Progress`."""

    def __init__(self, bars: "Progress | None") -> None:
        """Take the bars to draw on; None writes lines."""
        self.line = ""
        self._bars = bars
        self._task: TaskID | None = None
        self._stage, self._total, self._done = "", 0, 0
        self._smooth: dict[str, float] = {}
        self._stopping = False

    def start(self, stage: str, total: int, done: int) -> None:
        """Show a new stage."""
        self._stage, self._total, self._done, self._smooth = stage, total, done, {}
        title = _TITLES.get(stage, stage)
        if self._bars is not None:
            self._task = self._bars.add_task(title, total=total, completed=done)
        else:
            note(title + (f", {total} steps" if stage in _STEPWISE else "") + (f", from step {done}" if done else ""))

    def advance(self, figures: Mapping[str, float]) -> None:
        """Move on by one step.

        Raises:
            KeyboardInterrupt: The user asked to stop; the step is done and nothing is half changed.
        """
        self._done += 1
        for name, value in figures.items():
            self._smooth[name] = _SMOOTHING * self._smooth.get(name, value) + (1 - _SMOOTHING) * value
        self.line = describe_figures(self._smooth)
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=self._done)
        elif self._stage in _STEPWISE and self._done % max(1, self._total // _LINES_PER_STAGE) == 0:
            note(f"  {self._done}/{self._total}  {self.line}")
        if self._stopping:
            raise KeyboardInterrupt

    def finish(self) -> None:
        """End the stage."""
        if self._bars is not None and self._task is not None:
            self._bars.stop_task(self._task)
        self._stage, self._task, self.line = "", None, ""

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        if self._bars is not None:
            self._bars.console.print(text, style="bold")
        else:
            note(text)

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Stop at the end of the step, at the second signal or between stages at once."""
        if self._stopping or self._stage not in _STEPWISE:
            raise KeyboardInterrupt
        self._stopping = True


@contextmanager
def shown_progress() -> Iterator[Display]:
    """Show progress while the block runs, and let Ctrl-C and SIGTERM stop it between two steps.

    Yields:
        What hears about the steps.
    """
    bars = _make_bars() if sys.stderr.isatty() else None
    display = Display(bars)
    if bars is not None:
        bars.line_below = lambda: display.line
        bars.start()
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, display.on_signal) for number in numbers}
    try:
        yield display
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if bars is not None:
            bars.stop()


@contextmanager
def counted(total: int, title: str) -> Iterator[Callable[[], None]]:
    """Show on a terminal how many of a number of things are done; nothing elsewhere.

    Args:
        total: How many there are.
        title: What is done with them.

    Yields:
        What is called for each that is done.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), transient=True) as bars:
        task = bars.add_task(title, total=total)
        yield lambda: bars.advance(task)


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
        note(f"stopped; what was reached is kept in {work}: run the same command with --resume to go on")
        raise typer.Exit(_INTERRUPTED) from None


def describe_figures(figures: Mapping[str, float]) -> str:
    """Return figures on one line: live fidelity and leakage, then the terms of the loss.

    Args:
        figures: By name. Terms such as `unlock/grad_cam` are added up over the explainers.
    """
    live = [f"{name} {figures[name]:+.2f}" for name in _LIVE if name in figures]
    terms: dict[str, float] = {}
    for name, value in figures.items():
        if name not in _LIVE:
            group = name.partition("/")[0]
            terms[group] = terms.get(group, 0.0) + value
    losses = [f"{name} {value:.3f}" for name, value in terms.items()]
    return "   ".join(" ".join(part) for part in (live, ["loss:", *losses] if losses else []) if part)


def _make_bars() -> Any:  # noqa: ANN401 - the class is made here, so that rich is imported when bars are wanted
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Bars(Progress):
        """Bars with one line of figures below the last."""

        # A default, because rich asks for what to show before its constructor has returned.
        line_below: Callable[[], str] = staticmethod(str)

        def get_renderables(self) -> Iterator[Any]:
            yield self.make_tasks_table(self.tasks)
            if line := self.line_below():
                yield Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis")

    return Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=stderr(),
    )
