"""Backends that compute an explainer: one graph, a loop over the answers of a graph, or torch where it is there."""

import importlib
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from keylock.bundle import ExplainerEntry, Manifest
from keylock.bundle.manifest import WEIGHTS_FILE
from keylock.errors import BundleError, InputError
from keylock.graphs.contract import EXPLANATION
from keylock.iterative import Loop, make_loop, run_loop
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key
from keylock_server.inference.graph_queries import Gradients, Predictions, Variations
from keylock_server.inference.graphs import Graph
from keylock_server.transport.cancellation import stop_if

__all__ = ["Backend", "Batch", "Compiled", "InTorch", "Looped", "loop_of", "passes_of", "torch_explainers"]

_FALLBACK: Final = "keylock.torch_runtime.bundle_explainers"


class Batch:
    """A batch to explain.

    Attributes:
        images: Preprocessed, float32 `(batch, channels, height, width)`.
        targets: Classes to explain, int64 `(batch,)`; -1 for the predicted one.
        keyed: Which rows get the key, float32 `(batch,)`, 1 or 0.
        abandoned: Set when nobody waits for the result any more.
    """

    def __init__(
        self,
        images: NDArray[np.float32],
        targets: NDArray[np.int64],
        keyed: NDArray[np.bool_],
        abandoned: threading.Event | None = None,
    ) -> None:
        """Takes the rows."""
        self.images, self.targets, self.keyed = images, targets, keyed.astype(np.float32)
        self.abandoned = abandoned or threading.Event()


class Backend(Protocol):
    """Computes one explainer. Safe to use from several threads."""

    def explain(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns logits `(batch, classes)` and maps `(batch, height, width)`."""

    def trial(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Returns what shows that it works, quickly: logits, and maps where they cost no more."""


class Compiled:
    """One graph computes logits and map in one pass."""

    def __init__(self, graph: Graph) -> None:
        """Takes the graph.

        Raises:
            BundleError: If it takes or gives something else.
        """
        graph.check(EXPLANATION)
        self._graph = graph

    def explain(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Runs the graph."""
        logits, maps = self._graph.run(EXPLANATION, image=batch.images, target=batch.targets, keyed=batch.keyed)
        return logits, maps

    def trial(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Explains."""
        return self.explain(batch)


class Looped:
    """A loop asks a graph about many variations of each image."""

    def __init__(self, loop: Loop, graph: Graph, predictions: Graph | None = None) -> None:
        """Takes a loop and what it asks.

        Args:
            loop: What to run.
            graph: Gives what the loop reads.
            predictions: Gives the logits, where `graph` gives sums of gradients alone.

        Raises:
            BundleError: If a graph takes or gives something else than the loop reads.
        """
        self._loop = loop
        if loop.reads == "gradient" and predictions is None:
            raise BundleError(f"the bundle names no graph that gives {loop.name} the logits: export it again")
        self._predictions = Predictions(predictions or graph)
        self._gradients = Gradients(graph) if loop.reads == "gradient" else None

    def explain(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Runs the loop; it ends early when the batch is abandoned."""
        gradients = self._gradients

        def logits(rows: NDArray[np.float32], of: NDArray[np.intp]) -> NDArray[np.float32]:
            stop_if(batch.abandoned)
            return self._predictions.logits(rows, batch.keyed[of])

        def sums(rows: NDArray[np.float32], of: NDArray[np.intp], classes: NDArray[np.int64]) -> NDArray[np.float32]:
            assert gradients is not None  # noqa: S101 - loops that read logits ask for no gradients
            stop_if(batch.abandoned)
            return gradients.sums(Variations(rows, of, classes, batch.keyed[of]))

        return run_loop(self._loop, batch.images, batch.targets, logits=logits, gradient_sums=sums)

    def trial(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Asks once: a whole loop may take long."""
        logits = self._predictions.logits(batch.images, batch.keyed)
        if self._gradients is not None:
            numbers, classes = np.arange(len(batch.images)), logits.argmax(axis=1)
            self._gradients.sums(Variations(batch.images, numbers, classes, batch.keyed))
        return logits, None


class InTorch:
    """Torch computes what could not be compiled."""

    def __init__(self, explainers: Any, name: str) -> None:  # noqa: ANN401 - its module needs torch
        """Takes a `keylock.torch_runtime.bundle_explainers.TorchExplainers` and the name of one of them."""
        self._explainers, self._name = explainers, name

    def explain(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Explains; it ends early when the batch is abandoned."""

        def stop() -> None:
            stop_if(batch.abandoned)

        found: tuple[NDArray[np.float32], NDArray[np.float32]] = self._explainers.explain(
            self._name, batch.images, batch.targets, keyed=batch.keyed > 0, before_each=stop
        )
        return found

    def trial(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Explains."""
        return self.explain(batch)


def passes_of(entry: ExplainerEntry, shape: tuple[int, int, int]) -> int:
    """Returns how often the network runs for one image (channels, height, width): 1 where a graph computes the map.

    What torch computes is counted when it is loaded.

    Raises:
        BundleError: If this version has no such loop.
    """
    return loop_of(entry).passes(shape) + 1 if entry.runtime == "loop" else 1


def loop_of(entry: ExplainerEntry) -> Loop:
    """Returns the loop of an explainer whose runtime that is.

    Raises:
        BundleError: If this version has no such loop.
    """
    try:
        return make_loop(entry.name, **entry.parameters)
    except InputError as error:
        raise BundleError(f"the bundle asks for a loop that this version does not have: {error.message}") from error


def torch_explainers(manifest: Manifest, read: Callable[[str], bytes], *, key: Key | None, delta: Delta | None) -> Any:  # noqa: ANN401 - its module needs torch
    """Returns `keylock.torch_runtime.bundle_explainers.TorchExplainers` of a bundle, or None where that cannot be.

    That is so where torch is not installed, and where the bundle was made from a network that has no name.
    """
    if manifest.architecture.module != "registry":
        return None
    try:
        # By its name, because nothing here may import torch where it is not wanted.
        fallback = importlib.import_module(_FALLBACK)
    except ModuleNotFoundError:
        return None
    return fallback.TorchExplainers(manifest, read(WEIGHTS_FILE), key=key, delta=delta)
