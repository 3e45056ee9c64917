"""How a training run tells what it is doing, without knowing who listens."""

from collections.abc import Mapping
from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Hears about a run, step by step."""

    def start(self, stage: str, total: int, done: int) -> None:
        """A stage of `total` steps begins, of which `done` were done before."""

    def advance(self, figures: Mapping[str, float]) -> None:
        """One step is done; `figures` are loss terms and, from time to time, live fidelity and leakage."""

    def finish(self) -> None:
        """The stage is over."""


class Silent:
    """Listens to nothing."""

    def start(self, stage: str, total: int, done: int) -> None:
        """Ignore the stage."""

    def advance(self, figures: Mapping[str, float]) -> None:
        """Ignore the step."""

    def finish(self) -> None:
        """Ignore the end."""
