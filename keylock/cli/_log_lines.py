"""Progress where there is no terminal, such as in the log of a batch job: a line now and then."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from keylock.cli._console import note
from keylock.cli._stage import GAP, Stage, format_seconds

__all__ = ["Lines"]

_PER_STAGE = 10
_LEAST_GAP_S = 1.0
_LONGEST_GAP_S = 60.0


class Lines:
    """Writes a line after a tenth of the steps, after a minute, and after a first step that is slow."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the clock, in seconds."""
        self._clock = clock
        self._written_s, self._written_at = 0.0, 0

    def begin(self, stage: Stage) -> None:
        """Write what begins."""
        self._written_s, self._written_at = self._clock(), stage.done
        if stage.told:
            steps = "step" if stage.total == 1 else "steps"
            note(f"{stage.title}, {stage.total} {steps}" + (f", from step {stage.done}" if stage.done else ""))

    def step(self, stage: Stage) -> None:
        """Write how far it is, if it is time."""
        if not self._due(stage):
            return
        self._written_s, self._written_at = self._clock(), stage.done
        left = "" if stage.left_s is None else f", {format_seconds(stage.left_s)} left"
        title = "" if stage.told else f"{stage.title}: "
        line = f"  {title}{stage.count}{GAP}{format_seconds(stage.passed_s)} passed{left}"
        note(GAP.join([line, *stage.says]))

    def _due(self, stage: Stage) -> bool:
        since_s, steps = self._clock() - self._written_s, stage.done - self._written_at
        tenth = max(1, stage.total // _PER_STAGE)
        enough = stage.told and (steps >= tenth or stage.taken == 1) and since_s >= _LEAST_GAP_S
        return stage.done < stage.total and (enough or since_s >= _LONGEST_GAP_S)

    def end(self, stage: Stage) -> None:
        """Write what came of it."""
        if stage.told:
            note(f"  {stage.outcome}")

    def say(self, text: str) -> None:
        """Write a line."""
        note(text)

    def warn(self, text: str) -> None:
        """Write a line from within a signal handler, which may have come in the middle of another line."""
        with suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), f"{text}\n".encode())
