"""How a long run tells what it is doing, without knowing who listens."""

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

__all__ = ["NamedSteps", "Progress", "Silent"]


class Progress(Protocol):
    """Hears about a run, step by step."""

    def start(self, stage: str, total: int, done: int) -> None:
        """A stage of `total` steps begins, of which `done` were done before."""

    def doing(self, what: str) -> None:
        """A step begins that has a name, such as `prove grad_cam`."""

    def advance(self, figures: Mapping[str, float]) -> None:
        """One step is done; `figures` are loss terms and, from time to time, live fidelity and leakage."""

    def finish(self) -> None:
        """The stage is over."""


class Silent:
    """Listens to nothing."""

    def start(self, stage: str, total: int, done: int) -> None:
        """Ignore the stage."""

    def doing(self, what: str) -> None:
        """Ignore the name of a step."""

    def advance(self, figures: Mapping[str, float]) -> None:
        """Ignore the step."""

    def finish(self) -> None:
        """Ignore the end."""


class NamedSteps:
    """A stage whose steps are told as they begin, by what they do: `with NamedSteps(...) as step: step("compile")`.

    Steps that were foreseen and not taken, such as those of a graph that cannot be made, count as done at the end.
    """

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        """Take who listens, the name of the stage, and how many steps are foreseen."""
        self._progress, self._stage, self._total = progress, stage, total
        self._begun = self._told = 0

    def __enter__(self) -> Self:
        """Begin the stage."""
        self._progress.start(self._stage, self._total, 0)
        return self

    def __call__(self, what: str) -> None:
        """Begin a step, which ends the one before."""
        if self._begun:
            self._advance_to(self._begun)
        self._begun += 1
        self._progress.doing(what)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the stage; after an error the step that it broke off counts as not done."""
        if kind is None:
            self._advance_to(self._total)
        self._progress.finish()

    def _advance_to(self, place: int) -> None:
        while self._told < min(place, self._total):
            self._progress.advance({})
            self._told += 1
