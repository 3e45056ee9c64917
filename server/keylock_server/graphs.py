"""The graphs of a bundle in ONNX Runtime, with the secrets that they take beside the images."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from keylock.adapters import Adapter
from keylock.bundle import WEIGHTS_FILE
from keylock.errors import BundleError, KeylockError
from keylock.keys import Key
from keylock_server.binding import inputs_of
from keylock_server.merging import MergedGraph, Weights
from keylock_server.running import suited_to
from keylock_server.sessions import Sessions

__all__ = ["Graph", "Loader"]

_ROWS: Final = frozenset({"image", "target", "keyed", "share"})
_ADAPTER: Final = ("gate.", "delta.")


class Graph:
    """A loaded graph. Safe to use from several threads.

    Attributes:
        path: Its file in the bundle.
        providers: The execution providers ONNX Runtime really uses, best first.
    """

    def __init__(
        self, path: str, session: onnxruntime.InferenceSession, *, most_rows: int, bound: Collection[str] = ()
    ) -> None:
        """Takes a session.

        Args:
            path: The graph's file in the bundle.
            session: Runs it.
            most_rows: How many rows the session was made for, where that matters to its device.
            bound: What the graph in the file takes as well, and has been given already.
        """
        self.path, self._session, self._run = path, session, suited_to(session, most_rows=most_rows)
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        self._bound = frozenset(bound)

    def check_names(self, *, inputs: Collection[str], outputs: Collection[str]) -> None:
        """Checks what the graph takes and gives; the tensors of an adapter may be among its inputs.

        Raises:
            BundleError: If it is something else.
        """
        taken = {entry.name for entry in self._session.get_inputs()} | self._bound
        found_inputs = {name for name in taken if not name.startswith(_ADAPTER)}
        found_outputs = {entry.name for entry in self._session.get_outputs()}
        if found_inputs != set(inputs) or not set(outputs) <= found_outputs:
            raise BundleError(
                f"a graph takes {sorted(found_inputs)} and gives {sorted(found_outputs)} instead of {sorted(inputs)} "
                f"and {sorted(outputs)}: export the bundle again"
            )

    def run(self, outputs: Sequence[str], **rows: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Runs the graph on a batch.

        Args:
            outputs: What to return.
            **rows: The inputs that have a row for each image.
        """
        return self._run(outputs, rows)


class Loader:
    """Loads the graphs of a bundle, each once, and gives them the secrets that they take."""

    def __init__(
        self,
        read: Callable[[str], bytes],
        *,
        key: Key | None,
        adapter: Adapter | None,
        sessions: Sessions,
        numbers: Mapping[str, str],
    ) -> None:
        """Makes a loader.

        Args:
            read: Returns the bytes of a file of the bundle.
            key: The key; without it, graphs get zeros in the place of all secrets, which never open.
            adapter: The adapter, which comes with the key where the model is locked with two factors.
            sessions: Opens the graphs.
            numbers: By file, what a graph computes in that does not compute in float32.
        """
        self._read, self._sessions, self._numbers = read, sessions, numbers
        self._adapter = adapter
        self._weights: Weights | None = None
        self._secrets: dict[str, NDArray[np.float32]] | None = None
        if key is not None:
            self._secrets = {"key": key.reveal(), **({} if adapter is None else adapter.tensors())}
        self._graphs: dict[str, Graph] = {}
        self._merged_graphs: dict[str, MergedGraph] = {}

    def __call__(self, path: str) -> Graph:
        """Returns the graph of a file.

        Raises:
            BundleError: If it cannot be loaded, or takes other secrets than there are.
            ServiceError: If it does not run on the device that was insisted on.
        """
        if path not in self._graphs:
            self._graphs[path] = self._open(path)
        return self._graphs[path]

    def mergeable(self, path: str) -> MergedGraph:
        """Returns the graph of a file that takes the weights of the layers that a two-factor lock adapts.

        Raises:
            BundleError: If it cannot be loaded, or takes other weights than there are.
            ServiceError: If it does not run on the device that was insisted on.
        """
        if path not in self._merged_graphs:
            self._merged_graphs[path] = self._open_mergeable(path)
        return self._merged_graphs[path]

    def _open(self, path: str) -> Graph:
        model = self._read(path)
        shapes = _more_inputs(path, model)
        return self._start(path, model, self._given(path, shapes), bound=shapes)

    def _open_mergeable(self, path: str) -> MergedGraph:
        if (self._adapter is None) != (self._secrets is None):
            raise BundleError(f"the graph {path} takes other secrets than the bundle holds: export it again")
        if self._weights is None:
            self._weights = Weights(self._read(WEIGHTS_FILE), self._adapter)
        model = self._read(path)
        weights, merged_weights = self._weights.for_graph(path, _more_inputs(path, model))
        published = self._start(path, model, weights)
        if self._adapter is None:  # No row is keyed.
            return MergedGraph(published, published)
        return MergedGraph(published, self._start(path, model, merged_weights))

    def _start(
        self, path: str, model: bytes, given: Mapping[str, NDArray[np.float32]], *, bound: Collection[str] = ()
    ) -> Graph:
        try:
            session = self._sessions.open(path, model, given, numbers=self._numbers.get(path, "float32"))
        except KeylockError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own.
            raise BundleError(f"the graph {path} cannot be loaded: export the bundle again") from error
        return Graph(path, session, most_rows=self._sessions.max_batch, bound=bound)

    def _given(self, path: str, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, NDArray[np.float32]]:
        """Returns what a graph gets in the place of its secret inputs, whose shapes are given."""
        if self._secrets is None or not shapes:
            return {secret: np.zeros(shape, np.float32) for secret, shape in shapes.items()}
        if {secret: array.shape for secret, array in self._secrets.items()} != shapes:
            raise BundleError(f"the graph {path} takes other secrets than the bundle holds: export it again")
        return self._secrets


def _more_inputs(path: str, model: bytes) -> dict[str, tuple[int, ...]]:
    """Returns what a graph takes beside its rows, with the shapes."""
    try:
        return {name: shape for name, shape in inputs_of(model).items() if name not in _ROWS}
    except ValueError as error:
        raise BundleError(f"the graph {path} cannot be loaded: export the bundle again") from error
