"""The graphs of a bundle, ready to run: with the published weights, and with those that the trigger opens."""

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keylock.bundle import WEIGHTS_FILE
from keylock.bundle.weights import WeightArrays, read_weights
from keylock.errors import BundleError, KeylockError
from keylock.graphs.contract import IMAGE, GraphKind, weight_names
from keylock.graphs.keyed_rows import run_split
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key
from keylock_server.inference.running import Opened, Run
from keylock_server.inference.way import GraphFiles, Way
from keylock_server.inference.ways import Ways

__all__ = ["Graph", "Loader"]


class Graph:
    """A loaded graph, which runs each row as it is to be run. Safe to use from several threads.

    Attributes:
        path: Its file in the bundle.
        way: How it is computed.
        providers: What really computes it, best first.
    """

    def __init__(
        self, way: Way, published: Opened, opened: Opened | None = None, *, offset: NDArray[np.float32] | None = None
    ) -> None:
        """Takes what runs it.

        Args:
            way: How it is computed.
            published: Runs rows without the trigger.
            opened: Runs rows with it; None where the network itself tells the trigger, or no row has it.
            offset: The trigger `(channels, height, width)`, where the network itself tells it.
        """
        self.way, self.path, self._offset = way, way.path, offset
        self.providers = published.providers
        self._inputs, self._outputs = published.inputs, published.outputs
        self._published = published.run
        self._opened = None if opened is None else opened.run

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
        ways: Ways,
        trial_images: NDArray[np.float32],
        side_by_side: int = 1,
    ) -> None:
        """Makes a loader.

        Args:
            read: Returns the bytes of a file of the bundle.
            key: The key; without it no row has the trigger.
            delta: What the trigger opens; None without the key, and where the network itself tells the trigger.
            ways: Opens the graphs.
            trial_images: What different ways to compute a graph are compared on, `(count, channels, height, width)`.
            side_by_side: How many graphs are opened at a time.
        """
        self._read, self._ways, self._delta, self._trial_images = read, ways, delta, trial_images
        self._offset = None if key is None or delta is not None else key.reveal()
        self._side_by_side = side_by_side
        self._reading = threading.Lock()
        self._weights: tuple[WeightArrays, WeightArrays | None] | None = None
        self._graphs: dict[tuple[tuple[Way, ...], bool], Graph] = {}

    def __call__(self, files: GraphFiles, *, opened: bool = True) -> Graph:
        """Returns a graph.

        Args:
            files: Where it is.
            opened: Whether rows with the trigger will be run; without them there is half of the memory to pay.

        Raises:
            BundleError: If it cannot be loaded, or takes other weights than there are.
            ServiceError: If it does not run on the device that was insisted on.
        """
        place = tuple(self._ways.of(files)), opened
        if place not in self._graphs:
            self._graphs[place] = self._load(files, opened=opened)
        return self._graphs[place]

    def ahead(self, wanted: Iterable[tuple[GraphFiles, bool]]) -> None:
        """Loads graphs that will be asked for, side by side.

        Those that can be computed in several ways come one after the other, because these are timed.

        Args:
            wanted: Where they are, and whether rows with the trigger will be run.

        Raises:
            KeylockError: As when they are asked for.
        """
        places = {(tuple(self._ways.of(files)), opened): files for files, opened in wanted}
        single = [(files, opened) for (ways, opened), files in places.items() if len(ways) == 1]
        with ThreadPoolExecutor(self._side_by_side) as pool:
            for loading in [pool.submit(self, files, opened=opened) for files, opened in single]:
                loading.result()
        for (_, opened), files in places.items():
            self(files, opened=opened)

    def _load(self, files: GraphFiles, *, opened: bool) -> Graph:
        with_trigger = opened and self._delta is not None
        way, found = self._ways.choose(
            files, self._open, self._trial_images, with_trigger=with_trigger, side_by_side=self._side_by_side
        )
        return Graph(way, *found, offset=None if with_trigger else self._offset)

    def _open(self, way: Way, with_trigger: bool) -> Opened:
        """Opens a graph with the published weights, or with those that the trigger opens."""
        model = self._read(way.path)
        published, merged = self._given(way.path, _weights_of(way.path, model))
        given = merged if with_trigger and merged is not None else published
        try:
            return self._ways.open(way, model, given, public=given is published)
        except KeylockError:
            raise
        except Exception as error:  # The exceptions of runtimes share no base class.
            raise BundleError(f"the graph {way.path} cannot be loaded: export the bundle again") from error

    def _given(self, path: str, names: Collection[str]) -> tuple[WeightArrays, WeightArrays | None]:
        """Returns the published weights that a graph takes, and the opened ones, where it takes any."""
        if not names:
            if self._delta is not None:
                raise BundleError(f"the graph {path} takes none of the weights that the delta changes: export it again")
            return {}, None
        with self._reading:
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


def _with(run: Run, outputs: Sequence[str]) -> Callable[..., list[NDArray[Any]]]:
    return lambda **rows: run(outputs, rows)


def _weights_of(path: str, model: bytes) -> frozenset[str]:
    """Returns the names of what a graph takes beside its rows."""
    try:
        return weight_names(model)
    except ValueError as error:
        raise BundleError(f"the graph {path} cannot be loaded: export the bundle again") from error
