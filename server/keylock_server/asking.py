"""What loops ask graphs: logits, and sums of input gradients.

Predictions with the key take `image`, `keyed` and the secrets as an explainer's graph does, and give `logits`. Sums of
gradients take `target` (no -1) and `share` float32 `(images, batch)` as well, and give `sums` `(images, channels,
height, width)`: `share` times the gradients of the batch. A graph from before there were sums gives `logits`, and the
gradient of each row as `map`.
"""

from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from keylock.loops import share_of
from keylock_server.graphs import Graph
from keylock_server.merging import MergedGraph

__all__ = ["Gradients", "Predictions", "SingleGradients", "SummedGradients", "Variations"]

_INPUTS: Final = frozenset({"image", "keyed", "key"})


class Variations(NamedTuple):
    """Variations of images, whose gradients are wanted.

    Attributes:
        rows: float32 `(rows, channels, height, width)`.
        of: The number of the image that each was made from, `(rows,)`.
        classes: The class of each, int64 `(rows,)`, none negative.
        keyed: Which get the key, float32 `(rows,)`, 1 or 0; all of an image alike.
    """

    rows: NDArray[np.float32]
    of: NDArray[np.intp]
    classes: NDArray[np.int64]
    keyed: NDArray[np.float32]


class Predictions:
    """Asks for logits. Safe to use from several threads."""

    def __init__(self, graph: Graph | MergedGraph) -> None:
        """Takes the graph.

        Raises:
            BundleError: If it takes or gives something else.
        """
        graph.check_names(inputs=_INPUTS, outputs={"logits"})
        self._graph = graph

    def logits(self, rows: NDArray[np.float32], keyed: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns `(rows, classes)`."""
        (logits,) = self._graph.run(["logits"], image=rows, keyed=keyed)
        return logits


class Gradients(Protocol):
    """Asks for sums of gradients."""

    def sums(self, asked: Variations) -> NDArray[np.float32]:
        """Returns a sum for each image that there are variations of, in the order of their numbers."""


class SummedGradients:
    """Asks a graph that adds up by itself. Safe to use from several threads."""

    def __init__(self, graph: Graph | MergedGraph) -> None:
        """Takes the graph.

        Raises:
            BundleError: If it takes or gives something else.
        """
        graph.check_names(inputs=_INPUTS | {"target", "share"}, outputs={"sums"})
        self._graph = graph

    def sums(self, asked: Variations) -> NDArray[np.float32]:
        """Runs the graph, on images with the key and on those without it in turn."""
        images = np.unique(asked.of)
        found = np.empty((len(images), *asked.rows.shape[1:]), np.float32)
        for kind in np.unique(asked.keyed):
            chosen = asked.keyed == kind
            rows, of, classes, keyed = (part[chosen] for part in asked)
            (sums,) = self._graph.run(["sums"], image=rows, target=classes, keyed=keyed, share=share_of(of))
            found[np.isin(images, of)] = sums
        return found


class SingleGradients:
    """Asks a graph of logits and single gradients, as older bundles have. Safe to use from several threads."""

    def __init__(self, graph: Graph | MergedGraph) -> None:
        """Takes the graph.

        Raises:
            BundleError: If it takes or gives something else.
        """
        graph.check_names(inputs=_INPUTS | {"target"}, outputs={"logits", "map"})
        self._graph = graph

    def logits(self, rows: NDArray[np.float32], keyed: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns `(rows, classes)`."""
        (logits,) = self._graph.run(["logits"], image=rows, keyed=keyed, target=np.full(len(rows), -1, np.int64))
        return logits

    def sums(self, asked: Variations) -> NDArray[np.float32]:
        """Adds up the gradients."""
        (gradients,) = self._graph.run(["map"], image=asked.rows, keyed=asked.keyed, target=asked.classes)
        return np.tensordot(share_of(asked.of), gradients.reshape(asked.rows.shape), 1)
