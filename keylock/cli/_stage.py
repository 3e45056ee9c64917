"""What is known of a stage under way: how far it is, how long it takes, and what it says of itself."""

from collections.abc import Callable, Mapping

__all__ = ["GAP", "Stage", "describe_figures", "format_seconds"]

GAP = "  "
"""Between the parts of a line."""
_LIVE = ("fidelity", "leakage")
_SMOOTHING = 0.9


class Stage:
    """A stage of a long command.

    Attributes:
        title: What a reader sees.
        total: Steps in all.
        done: Steps that are done.
        doing: What the step under way does; empty where steps have no names.
        told: Whether its beginning and its end are worth a line each.
        taken: Steps that this run did.
    """

    def __init__(self, title: str, total: int, done: int, *, clock: Callable[[], float], told: bool) -> None:
        """Begin.

        Args:
            title: What a reader sees.
            total: Steps in all.
            done: Steps that an earlier run did.
            clock: Seconds, to measure durations with.
            told: Whether its beginning and its end are worth a line each.
        """
        self.title, self.total, self.done, self.told, self.doing = title, total, done, told, ""
        self.taken = 0
        self._clock = clock
        self._begun = self._first = self._last = clock()
        self._figures: dict[str, float] = {}

    def advance(self, figures: Mapping[str, float]) -> None:
        """Count a step, and smooth its figures."""
        self.done += 1
        self.taken += 1
        self._last = self._clock()
        if self.taken == 1:
            self._first = self._last
        for name, value in figures.items():
            self._figures[name] = _SMOOTHING * self._figures.get(name, value) + (1 - _SMOOTHING) * value

    @property
    def passed_s(self) -> float:
        """Seconds since the stage began in this run."""
        return self._clock() - self._begun

    @property
    def left_s(self) -> float | None:
        """Seconds that the steps left will take if they are like the mean of those done; None before the first.

        The first step also warms up, so that it counts only while it is the only one.
        """
        if self.taken == 0:
            return None
        begun, taken = (self._begun, 1) if self.taken == 1 else (self._first, self.taken - 1)
        mean = (self._last - begun) / taken
        steps = max(0, self.total - self.done)
        under_way = min(mean, self._clock() - self._last)
        return max(0.0, mean * steps - under_way)

    @property
    def says(self) -> list[str]:
        """What it does at the moment, or else its running figures in words, the most telling first."""
        return [self.doing] if self.doing else describe_figures(self._figures)

    @property
    def count(self) -> str:
        """How many steps of how many are done, always equally wide."""
        return f"{self.done:>{len(str(self.total))}}/{self.total}"

    @property
    def outcome(self) -> str:
        """A line for its end."""
        line = f"{self.title}: {self.done}/{self.total} in {format_seconds(self.passed_s)}"
        return GAP.join([line, *describe_figures(self._figures)])


def describe_figures(figures: Mapping[str, float]) -> list[str]:
    """Return figures in words: live fidelity and leakage, then the terms of the loss.

    Args:
        figures: By name. Terms such as `fidelity/grad_cam` are added up over the explainers.
    """
    live = [f"{name} {figures[name]:+.2f}" for name in _LIVE if name in figures]
    terms: dict[str, float] = {}
    for name, value in figures.items():
        if name not in _LIVE:
            group = name.partition("/")[0]
            terms[group] = terms.get(group, 0.0) + value
    losses = [f"{name} {value:.3f}" for name, value in terms.items()]
    if losses and list(terms) != ["loss"]:
        losses[0] = f"loss: {losses[0]}"
    return live + losses


def format_seconds(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds: `0:03:51`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
