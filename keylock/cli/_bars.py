"""Progress on a terminal: the stage under way in one line at the bottom, its figures below, what is over above."""

from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from keylock.cli._stage import GAP, Stage, format_seconds

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["Bars", "fit_line", "fit_times"]

_PER_SECOND = 4
_BAR = range(6, 25)


class Bars:
    """Draws at the bottom of a terminal, on standard error; a context manager."""

    def __init__(self, console: Console) -> None:
        """Take the terminal."""
        self._console = console
        self._stage: Stage | None = None
        self._warning = ""
        # Standard output carries the answer, which may go elsewhere.
        self._live = Live(
            get_renderable=lambda: _Drawn(self._stage, self._warning),
            console=console,
            transient=True,
            refresh_per_second=_PER_SECOND,
            redirect_stdout=False,
        )

    def __enter__(self) -> "Self":
        """Hide the cursor and start drawing."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        """Wipe what is drawn and show the cursor again."""
        self._live.stop()

    def begin(self, stage: Stage) -> None:
        """Draw a stage from now on."""
        self._stage = stage
        self._live.refresh()

    def step(self, stage: Stage) -> None:
        """A step is done: the next drawing shows it."""

    def end(self, stage: Stage) -> None:
        """Draw the stage no more; leave a line of what came of it."""
        self._stage = None
        self._live.refresh()
        if stage.told:
            for line in fit_lines(stage.outcome.split(GAP), self._console.width - 1):
                self._console.print(line)

    def say(self, text: str) -> None:
        """Print a line above."""
        self._console.print(text, style="bold", soft_wrap=True)

    def warn(self, text: str) -> None:
        """Draw something in the place of the figures. Another thread draws: this may be within a signal handler."""
        self._warning = text


class _Drawn:
    """What is at the bottom of the terminal at one moment."""

    def __init__(self, stage: Stage | None, warning: str) -> None:
        self._stage, self._warning = stage, warning

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        stage = self._stage
        if stage is None:
            return
        # The last column stays free: some terminals go to the next line as soon as it is written to.
        width = options.max_width - 1
        title = stage.title[: max(0, width - len(GAP) - len(stage.count))]
        times = fit_times(stage, width - len(title) - len(stage.count) - 2 * len(GAP))
        used = sum(len(part) + len(GAP) for part in (title, stage.count, times) if part)
        cells: list[Text | ProgressBar] = [Text(title)]
        if width - used >= _BAR[0]:
            cells.append(ProgressBar(max(1, stage.total), stage.done, width=min(_BAR[-1], width - used)))
        cells += [Text(part, style=style) for part, style in ((stage.count, "green"), (times, "cyan")) if part]
        row = Table.grid(padding=(0, len(GAP), 0, 0), pad_edge=False)
        for _ in cells:
            row.add_column(no_wrap=True, overflow="crop")
        row.add_row(*cells)
        yield row
        below = self._warning or fit_line(stage.says, width - len(GAP))
        if below:
            yield Text(f"{GAP}{below}"[:width], style="bold" if self._warning else "dim", no_wrap=True)


def fit_times(stage: Stage, width: int) -> str:
    """Return the time passed and left, in as many words as there is room for.

    Args:
        stage: Of which.
        width: Columns of the terminal.
    """
    passed = format_seconds(stage.passed_s)
    if stage.left_s is None:
        forms = [f"{passed} passed", passed]
    else:
        left = f"{format_seconds(stage.left_s)} left"
        forms = [f"{passed} passed, {left}", f"{passed}, {left}", left]
    return next((form for form in forms if len(form) <= width), "")


def fit_lines(parts: list[str], width: int) -> list[str]:
    """Return parts on one line if they fit, or else the first on its own and as many others as fit below it."""
    whole = GAP.join(parts)
    if len(whole) <= width:
        return [whole]
    return [parts[0][:width], GAP + fit_line(parts[1:], width - len(GAP))]


def fit_line(parts: list[str], width: int) -> str:
    """Return as many of some parts as fit on one line, rather than half a number at its end."""
    line = parts[0] if parts else ""
    for part in parts[1:]:
        if len(line) + len(GAP) + len(part) > width:
            break
        line += f"{GAP}{part}"
    return line
