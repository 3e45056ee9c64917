"""The graphs of a bundle in ONNX Runtime: with the published weights, and with those that the trigger opens."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from keylock.bundle import WEIGHTS_FILE
from keylock.bundle.weights import WeightArrays, read_weights
from keylock.errors import BundleError, KeylockError
from keylock.graphs.contract import IMAGE, GraphKind, weight_names
from keylock.graphs.keyed_rows import run_split
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key
from keylock_server.inference.running import Run, suited_to
from keylock_server.inference.sessions import Sessions

__all__ = ["Graph", "Loader"]


class Graph:
    """A loaded graph, which runs each row as it is to be run. Safe to use from several threads.

    Attributes:
        path: Its file in the bundle.
        providers: The execution providers ONNX Runtime really uses, best first.
    """

    def __init__(
        self,
        path: str,
        published: onnxruntime.InferenceSession,
        opened: onnxruntime.InferenceSession | None = None,
        *,
        most_rows: int,
        offset: NDArray[np.float32] | None = None,
    ) -> None:
        """Takes what runs it.

        Args:
            path: The graph's file in the bundle.
            published: Runs rows without the trigger.
            opened: Runs rows with it; None where the network itself tells the trigger, or no row has it.
            most_rows: How many rows the sessions were made for, where that matters to their device.
            offset: The trigger `(channels, height, width)`, where the network itself tells it.
        """
        self.path, self._offset = path, offset
        self.providers: tuple[str, ...] = tuple(published.get_providers())
        self._inputs = frozenset(entry.name for entry in published.get_inputs())
        self._outputs = frozenset(entry.name for entry in published.get_outputs())
        self._published = suited_to(published, most_rows=most_rows)
        self._opened = None if opened is None else suited_to(opened, most_rows=most_rows)

    def check(self, kind: GraphKind) -> None:
        """Checks that the graph takes, beside weights, and gives what one of a kind does.

        Raises:
            BundleError: If it is something else.
        """
        if self._inputs != set(kind.inputs) or not set(kind.outputs) <= self._outputs:
            raise BundleError(
                f"a graph takes {sorted(self._inputs)} and gives {sorted(self._outputs)} instead of "
                f"{sorted(kind.inputs)} and {sorted(kind.outputs)}: export the bundle again"
            )

    def run(
        self, kind: GraphKind, *, keyed: NDArray[np.float32] | None = None, **rows: NDArray[Any]
    ) -> list[NDArray[np.float32]]:
        """Runs the graph on a batch; where it has rows of both kinds, those with the trigger first.

        Args:
            kind: What it was checked to be.
            keyed: Which rows have the trigger, float32 `(batch,)`, 1 or 0; none of them by default.
            **rows: The inputs that have a row for each image, without the trigger.
        """
        if keyed is not None and self._opened is not None:
            return run_split(
                keyed, rows, with_key=_with(self._opened, kind.outputs), without=_with(self._published, kind.outputs)
            )
        if keyed is not None and self._offset is not None:
            # Every row is multiplied and added to, so that both kinds cost the same.
            rows[IMAGE] = rows[IMAGE] + keyed[:, None, None, None] * self._offset
        elif keyed is not None and keyed.any():
            raise BundleError(f"the graph {self.path} was loaded without the key")
        return self._published(kind.outputs, rows)


class Loader:
    """Loads the graphs of a bundle, each once."""

    def __init__(
        self,
        read: Callable[[str], bytes],
        *,
        key: Key | None,
        delta: Delta | None,
        sessions: Sessions,
        precision: Mapping[str, str],
    ) -> None:
        """Makes a loader.

        Args:
            read: Returns the bytes of a file of the bundle.
            key: The key; without it no row has the trigger.
            delta: What the trigger opens; None without the key, and where the network itself tells the trigger.
            sessions: Opens the graphs.
            precision: By file, what a graph computes in that does not compute in float32.
        """
        self._read, self._sessions, self._precisions, self._delta = read, sessions, precision, delta
        self._offset = None if key is None or delta is not None else key.reveal()
        self._weights: tuple[WeightArrays, WeightArrays | None] | None = None
        self._graphs: dict[tuple[str, bool], Graph] = {}

    def __call__(self, path: str, *, opened: bool = True) -> Graph:
        """Returns the graph of a file.

        Args:
            path: The file.
            opened: Whether rows with the trigger will be run; without them there is half of the memory to pay.

        Raises:
            BundleError: If it cannot be loaded, or takes other weights than there are.
            ServiceError: If it does not run on the device that was insisted on.
        """
        if (path, opened) not in self._graphs:
            self._graphs[path, opened] = self._open(path, opened=opened)
        return self._graphs[path, opened]

    def _open(self, path: str, *, opened: bool) -> Graph:
        model = self._read(path)
        names = _weights_of(path, model)
        published, merged = self._given(path, names)
        if merged is None or not opened:
            session = self._start(path, model, published, public=True)
            return Graph(path, session, most_rows=self._sessions.max_batch, offset=self._offset)
        sessions = self._start(path, model, published, public=True), self._start(path, model, merged, public=False)
        return Graph(path, *sessions, most_rows=self._sessions.max_batch)

    def _given(self, path: str, names: Collection[str]) -> tuple[WeightArrays, WeightArrays | None]:
        """Returns the published weights that a graph takes, and the opened ones, where it takes any."""
        if not names:
            if self._delta is not None:
                raise BundleError(f"the graph {path} takes none of the weights that the delta changes: export it again")
            return {}, None
        if self._weights is None:
            self._weights = read_weights(self._read(WEIGHTS_FILE), self._delta)
        published, merged = self._weights
        if not set(names) <= set(published):
            raise BundleError(f"the graph {path} takes weights that the bundle does not have: export it again")
        if self._delta is not None and not set(self._delta.names) <= set(names):
            # Such a graph would answer with a mixture of both models.
            raise BundleError(f"the graph {path} does not take all the weights that the delta changes: export it again")
        return (
            {name: published[name] for name in names},
            None if merged is None else {name: merged[name] for name in names},
        )

    def _start(self, path: str, model: bytes, given: WeightArrays, *, public: bool) -> onnxruntime.InferenceSession:
        try:
            precision = self._precisions.get(path, "float32")
            return self._sessions.open(path, model, given, precision=precision, public=public)
        except KeylockError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own.
            raise BundleError(f"the graph {path} cannot be loaded: export the bundle again") from error


def _with(run: Run, outputs: Sequence[str]) -> Callable[..., list[NDArray[Any]]]:
    return lambda **rows: run(outputs, rows)


def _weights_of(path: str, model: bytes) -> frozenset[str]:
    """Returns the names of what a graph takes beside its rows."""
    try:
        return weight_names(model)
    except ValueError as error:
        raise BundleError(f"the graph {path} cannot be loaded: export the bundle again") from error
