"""A graph opened in several ways, which answer for the same few images: which are right, and how fast they are."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keylock.graphs.contract import IMAGE, SHARE, TARGET
from keylock.imaging.contrast import same_map
from keylock_server.inference.running import Opened
from keylock_server.inference.way import Way

__all__ = ["Trial"]

Outputs = list[NDArray[np.float32]]

_LOG: Final = logging.getLogger("keylock_server")
_TIMED_RUNS: Final = 2


class Trial:
    """Tries ways to compute one graph against the standard, with the published weights or with the opened ones.

    Each is opened once and keeps being there for as long as the trial is.
    """

    def __init__(
        self,
        what: str,
        standard: Way,
        open_: Callable[[Way, bool], Opened],
        images: NDArray[np.float32],
        *,
        least_pcc: float,
        side_by_side: int = 1,
    ) -> None:
        """Takes what is tried.

        Args:
            what: What the graph computes, for the log.
            standard: The way whose answers are right.
            open_: Opens the graph in a way, with the published weights or, if told so, with those that the trigger
                opens.
            images: To answer for, `(count, channels, height, width)`.
            least_pcc: How far answers must correlate with the standard's.
            side_by_side: How many are opened at a time.
        """
        self._what, self._standard, self._open, self._images = what, standard, open_, images
        self._least, self._side_by_side = least_pcc, side_by_side
        self._opened: dict[tuple[Way, bool], Opened | Exception] = {}
        self._outputs: dict[tuple[Way, bool], Outputs] = {}
        self._seconds: dict[Way, float] = {}

    def opened(self, way: Way, *, with_trigger: bool) -> Opened:
        """Returns the graph in a way, ready to run.

        Raises:
            Exception: Whatever the runtime raises, if it cannot open it.
        """
        self._open_all([way], with_trigger)
        found = self._opened[way, with_trigger]
        if isinstance(found, Exception):
            raise found
        return found

    def right(self, ways: Sequence[Way], *, with_trigger: bool = False) -> list[Way]:
        """Returns those of the ways whose answers are the standard's; of each other one the log says what is wrong.

        Raises:
            Exception: Whatever the runtime raises, if the standard cannot compute the graph.
        """
        others = [way for way in ways if way != self._standard]
        if others:
            self._open_all([self._standard, *others], with_trigger)
        return [way for way in ways if way == self._standard or self._is_right(way, with_trigger)]

    def seconds(self, way: Way) -> float:
        """Returns the time of the processor that a way takes for the images, at best, of those that are right.

        Of the processor: what other programs do must not choose.
        """
        if way not in self._seconds:
            opened = self.opened(way, with_trigger=False)
            taken = []
            for _ in range(_TIMED_RUNS):
                began = time.process_time()
                _run(opened, self._images)
                taken.append(time.process_time() - began)
            self._seconds[way] = min(taken)
        return self._seconds[way]

    def describe_times(self, way: Way) -> str:
        """Returns how long a way and the standard take, as the end of a sentence; nothing where they were not timed."""
        if way == self._standard or not {way, self._standard} <= set(self._seconds):
            return ""
        own, other = (1000 * self._seconds[one] for one in (way, self._standard))
        return f", {own:.1f} ms for {len(self._images)} images; in {self._standard} it is {other:.1f} ms"

    def _open_all(self, ways: Sequence[Way], with_trigger: bool) -> None:
        missing = [way for way in ways if (way, with_trigger) not in self._opened]

        def open_one(way: Way) -> Opened | Exception:
            try:
                return self._open(way, with_trigger)
            except Exception as error:  # The exceptions of runtimes share no base class.
                return error

        with ThreadPoolExecutor(self._side_by_side) as pool:
            for way, found in zip(missing, pool.map(open_one, missing), strict=True):
                self._opened[way, with_trigger] = found

    def _answers(self, way: Way, with_trigger: bool) -> Outputs:
        place = way, with_trigger
        if place not in self._outputs:
            self._outputs[place] = _run(self.opened(way, with_trigger=with_trigger), self._images)
        return self._outputs[place]

    def _is_right(self, way: Way, with_trigger: bool) -> bool:
        expected = self._answers(self._standard, with_trigger)
        try:
            found = self._answers(way, with_trigger)
        except Exception as error:
            cause = type(error.__cause__ or error).__name__
            _LOG.warning("%s: it cannot be computed in %s (%s)", self._what, way, cause)
            return False
        pcc = _agreement(expected, found)
        if pcc >= self._least:
            return True
        _LOG.warning(
            "%s: not computed in %s, whose answers correlate by %.4f with those in %s, where %g is asked for",
            self._what,
            way,
            pcc,
            self._standard,
            self._least,
        )
        return False


def _run(opened: Opened, images: NDArray[np.float32]) -> Outputs:
    return opened.run(sorted(opened.outputs), _rows(opened.inputs, images))


def _rows(inputs: frozenset[str], images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Returns inputs for a graph of any kind: the predicted classes, or the first one where a class must be named."""
    count = len(images)
    named = SHARE in inputs
    rows: dict[str, NDArray[Any]] = {
        IMAGE: images,
        TARGET: np.full(count, 0 if named else -1, np.int64),
        SHARE: np.full((1, count), 1 / count, np.float32),
    }
    return {name: rows[name] for name in inputs}


def _agreement(expected: Sequence[NDArray[np.float32]], found: Sequence[NDArray[np.float32]]) -> float:
    """Returns the lowest correlation of maps one by one and of logits together; 0 where something is not finite."""
    lowest = 1.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape or not np.isfinite(other).all():
            return 0.0
        pairs = [(one, other)] if one.ndim == 2 else zip(one, other, strict=True)
        lowest = min([lowest, *(same_map(mine, theirs) for mine, theirs in pairs)])
    return lowest
