"""Ways to compute a graph: on which runtime and in which numbers. The fastest is taken that gives the right answers.

ONNX Runtime is the standard, in float32 or in the numbers that were asked for. Whatever else is wanted, or might be
faster, answers for a few images first and is compared with it, with the published weights and, if it is chosen, with
those that the trigger opens; what differs does not serve.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from keylock.graphs.contract import IMAGE, SHARE, TARGET
from keylock.imaging.contrast import same_map
from keylock_server.inference.devices import CPU
from keylock_server.inference.openvino_graphs import OpenVINO
from keylock_server.inference.rounded_weights import rounded
from keylock_server.inference.running import Opened, of_session
from keylock_server.inference.sessions import Sessions

__all__ = ["GraphFiles", "Runtime", "Variant", "Way", "Ways"]

Runtime = Literal["auto", "onnxruntime", "openvino"]
Variant = Literal["auto", "float32", "bfloat16", "float16", "int8"]
Outputs = list[NDArray[np.float32]]

_LOG: Final = logging.getLogger("keylock_server")
_ONNX_RUNTIME: Final = "onnxruntime"
_OPENVINO: Final = "openvino"
_TIMED_RUNS: Final = 2
_WORTH: Final = 0.95
"""Another way than the standard has to take less than this share of its time, so that chance does not decide."""


@dataclass(frozen=True)
class GraphFiles:
    """A graph of a bundle, in all the numbers that there are.

    Attributes:
        what: What it computes, for the log.
        standard: Its file in float32.
        smaller: Names of other numbers and the files of the graph in these.
    """

    what: str
    standard: str
    smaller: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Way:
    """How a graph is computed.

    Attributes:
        runtime: `onnxruntime` or `openvino`.
        numbers: What in.
        path: The file in the bundle.
    """

    runtime: str
    numbers: str
    path: str

    def __str__(self) -> str:
        return f"{self.numbers} by {self.runtime}"


@dataclass(frozen=True)
class Tried:
    """What a way gave for the trial.

    Attributes:
        opened: The graph, ready to run.
        outputs: Its answers.
        seconds: Of the processor, at best.
    """

    opened: Opened
    outputs: Outputs
    seconds: float


class Ways:
    """Chooses among the ways to compute graphs, and opens them."""

    def __init__(
        self,
        sessions: Sessions,
        *,
        runtime: Runtime = "onnxruntime",
        variant: Variant = "float32",
        least_pcc: float = 0.999,
        openvino: OpenVINO | None = None,
    ) -> None:
        """Takes what is wanted.

        Args:
            sessions: Opens sessions of ONNX Runtime.
            runtime: `auto` for whatever is faster; in float32 that is ONNX Runtime.
            variant: What to compute in; `auto` for whatever is fastest.
            least_pcc: How far answers must correlate with the standard's.
            openvino: Opens graphs in OpenVINO; None where it is not to be used.
        """
        self._sessions, self._runtime, self._variant, self._least = sessions, runtime, variant, least_pcc
        self._openvino = openvino

    def of(self, files: GraphFiles) -> list[Way]:
        """Returns the ways that are wanted and possible, or the standard where none is."""
        there = {"float32": files.standard, **dict(files.smaller)}
        on_cpu = self._sessions.provider == CPU
        found = []
        if self._runtime != _OPENVINO:
            # Processors have no arithmetic in float16, and GPUs none that suits these graphs in int8.
            slow = "float16" if on_cpu else "int8"
            found += [
                Way(_ONNX_RUNTIME, numbers, path)
                for numbers, path in there.items()
                if self._wants(numbers) and not (self._variant == "auto" and numbers == slow)
            ]
        # In float32 both runtimes take about as long: nothing is compared at the start.
        compared = self._runtime == "auto" and self._variant != "float32"
        if self._openvino is not None and (compared or self._runtime == _OPENVINO):
            sources = {"float32": "float32", "int8": "int8"} | (
                {"bfloat16": "float32"} if self._openvino.has_bfloat16 else {}
            )
            found += [
                Way(_OPENVINO, numbers, there[source])
                for numbers, source in sources.items()
                if self._wants(numbers) and source in there
            ]
        return found or [Way(_ONNX_RUNTIME, "float32", files.standard)]

    def _wants(self, numbers: str) -> bool:
        return self._variant in ("auto", numbers)

    def open(self, way: Way, model: bytes, given: Mapping[str, NDArray[np.float32]], *, public: bool) -> Opened:
        """Opens a graph.

        Args:
            way: How it is to be computed.
            model: The graph.
            given: The weights that are bound to it, by name.
            public: Whether these are published.

        Raises:
            ServiceError: If it does not run on the device that was insisted on.
            Exception: Whatever the runtime raises, if it cannot compute the graph.
        """
        if way.numbers == "int8":
            model, given = rounded(model, given)
        if way.runtime == _OPENVINO:
            assert self._openvino is not None  # noqa: S101 - `of` names it where it is there alone
            return self._openvino.open(model, given, numbers=way.numbers)
        session = self._sessions.open(way.path, model, given, precision=way.numbers, public=public)
        return of_session(session, most_rows=self._sessions.max_batch)

    def choose(
        self,
        files: GraphFiles,
        open_: Callable[[Way, bool], Opened],
        images: NDArray[np.float32],
        *,
        with_trigger: bool,
    ) -> tuple[Way, list[Opened]]:
        """Opens a graph in the best way there is.

        Args:
            files: Where it is.
            open_: Opens it in a way, with the published weights or, if told so, with those that the trigger opens.
            images: To try it on, `(count, channels, height, width)`.
            with_trigger: Whether it is wanted with the opened weights as well.

        Returns:
            The way, and the graph with the published and, where that is wanted, with the opened weights.

        Raises:
            Exception: Whatever the runtime raises, if the standard cannot compute the graph.
        """
        ways = self.of(files)
        if self._variant not in ("auto", *(way.numbers for way in ways)):
            _LOG.warning("the bundle has no %s graph for %s, which is served in float32", self._variant, files.what)
        standard = self._standard(files, ways)
        if ways == [standard]:
            if standard.numbers != "float32":
                _LOG.info("%s: computed in %s", files.what, standard)
            return standard, [open_(standard, kind) for kind in ((False, True) if with_trigger else (False,))]
        expected = _try(open_(standard, False), images)
        trials = {way: self._tried(files, way, open_, images, expected, with_trigger=False) for way in ways}
        right = {way: trial for way, trial in trials.items() if trial is not None}
        order = sorted(right, key=lambda way: right[way].seconds * (_WORTH if way == standard else 1))
        # Where nothing that was wanted is right, the standard serves.
        right.setdefault(standard, expected)
        if with_trigger:
            truth = _try(open_(standard, True), images)
            tried = ((way, self._tried(files, way, open_, images, truth, with_trigger=True)) for way in order)
            way, opened = next(((way, trial) for way, trial in tried if trial is not None), (standard, truth))
            found = [right[way].opened, opened.opened]
        else:
            way = order[0] if order else standard
            found = [right[way].opened]
        _LOG.info(
            "%s: computed in %s, %.1f ms for %d images; in %s it is %.1f ms",
            files.what,
            way,
            1000 * right[way].seconds,
            len(images),
            standard,
            1000 * expected.seconds,
        )
        return way, found

    def _standard(self, files: GraphFiles, ways: Sequence[Way]) -> Way:
        """Returns what others are compared with: ONNX Runtime, in the numbers that were asked for or in float32."""
        asked = (way for way in ways if way.runtime == _ONNX_RUNTIME and way.numbers == self._variant)
        return next(asked, Way(_ONNX_RUNTIME, "float32", files.standard))

    def _tried(
        self,
        files: GraphFiles,
        way: Way,
        open_: Callable[[Way, bool], Opened],
        images: NDArray[np.float32],
        expected: Tried,
        *,
        with_trigger: bool,
    ) -> Tried | None:
        """Tries a way, and returns what it gave if that is what the standard gave."""
        standard = self._standard(files, self.of(files))
        if way == standard:
            return expected
        try:
            tried = _try(open_(way, with_trigger), images)
        except Exception as error:  # The exceptions of runtimes share no base class.
            _LOG.warning(
                "%s: it cannot be computed in %s (%s)", files.what, way, type(error.__cause__ or error).__name__
            )
            return None
        pcc = _agreement(expected.outputs, tried.outputs)
        if pcc >= self._least:
            return tried
        _LOG.warning(
            "%s: not computed in %s, whose answers correlate by %.4f with those in %s, where %g is asked for",
            files.what,
            way,
            pcc,
            standard,
            self._least,
        )
        return None


def _try(opened: Opened, images: NDArray[np.float32]) -> Tried:
    rows = _rows(opened.inputs, images)
    names = sorted(opened.outputs)
    outputs = opened.run(names, rows)
    seconds = []
    for _ in range(_TIMED_RUNS):
        # Of the processor: what other programs do must not choose.
        began = time.process_time()
        opened.run(names, rows)
        seconds.append(time.process_time() - began)
    return Tried(opened, outputs, min(seconds))


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
