"""Ways to compute a graph: on which runtime and in which numbers. The fastest is taken that gives the right answers.

ONNX Runtime is the standard, in float32 or in the numbers that were asked for. Whatever else is wanted, or might be
faster, answers for a few images first and is compared with it, with the published weights and, if it is chosen, with
those that the trigger opens; what differs does not serve.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from keylock_server.inference.choices import Choices
from keylock_server.inference.devices import CPU
from keylock_server.inference.openvino_graphs import OpenVINO
from keylock_server.inference.rounded_weights import rounded
from keylock_server.inference.running import Opened, of_session
from keylock_server.inference.sessions import Sessions
from keylock_server.inference.trials import Trial
from keylock_server.inference.way import GraphFiles, Way

__all__ = ["Runtime", "Variant", "Ways"]

Runtime = Literal["auto", "onnxruntime", "openvino"]
Variant = Literal["auto", "float32", "bfloat16", "float16", "int8"]

_LOG: Final = logging.getLogger("keylock_server")
_ONNX_RUNTIME: Final = "onnxruntime"
_OPENVINO: Final = "openvino"
_IMAGES: Final = 2
_WORTH: Final = 0.9
"""Another way than the standard has to take less than this share of its time, so that chance does not decide."""


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
        choices: Choices | None = None,
    ) -> None:
        """Takes what is wanted.

        Args:
            sessions: Opens sessions of ONNX Runtime.
            runtime: `auto` for whatever is faster; in float32 that is ONNX Runtime.
            variant: What to compute in; `auto` for whatever is fastest.
            least_pcc: How far answers must correlate with the standard's.
            openvino: Opens graphs in OpenVINO; None where it is not to be used.
            choices: Remembers which way was the fastest; None: that is found out whenever a model is loaded.
        """
        self._sessions, self._runtime, self._variant, self._least = sessions, runtime, variant, least_pcc
        self._openvino, self._choices = openvino, choices

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
        side_by_side: int = 1,
    ) -> tuple[Way, list[Opened]]:
        """Opens a graph in the best way there is.

        Args:
            files: Where it is.
            open_: Opens it in a way, with the published weights or, if told so, with those that the trigger opens.
            images: To try it on, `(count, channels, height, width)`.
            with_trigger: Whether it is wanted with the opened weights as well.
            side_by_side: In how many ways it is opened at a time, to be tried.

        Returns:
            The way, and the graph with the published and, where that is wanted, with the opened weights.

        Raises:
            Exception: Whatever the runtime raises, if the standard cannot compute the graph.
        """
        ways = self.of(files)
        if self._variant not in ("auto", *(way.numbers for way in ways)):
            _LOG.warning("the bundle has no %s graph for %s, which is served in float32", self._variant, files.what)
        standard = self._standard(files, ways)
        kinds = (False, True) if with_trigger else (False,)
        remembered = None if ways == [standard] or self._choices is None else self._choices.find(files, ways, standard)
        if ways == [standard] or remembered == standard:
            if standard.numbers != "float32" or remembered is not None:
                _LOG.info("%s: computed in %s%s", files.what, standard, ", as before" * (remembered is not None))
            return standard, [open_(standard, kind) for kind in kinds]
        trial = Trial(files.what, standard, open_, images[:_IMAGES], least_pcc=self._least, side_by_side=side_by_side)
        order = [] if remembered is None else trial.right([remembered])
        known = bool(order)
        if not known:
            order = _fastest_first(ways, standard, trial)
        right = (way for way in order if not with_trigger or trial.right([way], with_trigger=True))
        # Where nothing that was wanted is right, the standard serves.
        way = next(right, standard)
        before = ", as before" if known and way == remembered else ""
        _LOG.info("%s: computed in %s%s%s", files.what, way, before, trial.describe_times(way))
        if self._choices is not None and not before:
            self._choices.keep(files, ways, way)
        return way, [trial.opened(way, with_trigger=kind) for kind in kinds]

    def _standard(self, files: GraphFiles, ways: Sequence[Way]) -> Way:
        """Returns what others are compared with: ONNX Runtime, in the numbers that were asked for or in float32."""
        asked = (way for way in ways if way.runtime == _ONNX_RUNTIME and way.numbers == self._variant)
        return next(asked, Way(_ONNX_RUNTIME, "float32", files.standard))


def _fastest_first(ways: Sequence[Way], standard: Way, trial: Trial) -> list[Way]:
    """Returns the ways that are right with the published weights, the fastest first."""
    smaller = [way for way in ways if way == standard or way.numbers != "float32"]
    right = trial.right(smaller)
    if all(way == standard for way in right):
        # In float32 no runtime is much faster than another: it is tried where nothing smaller will do.
        right += trial.right([way for way in ways if way not in smaller])
    if len(right) < 2:
        return right
    return sorted(right, key=lambda way: trial.seconds(way) * (_WORTH if way == standard else 1))
