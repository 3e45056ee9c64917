"""What iterative explainers ask graphs: logits, and sums of input gradients."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from keylock.graphs.contract import GRADIENT_SUMS, PREDICTION
from keylock.iterative import share_of
from keylock_server.inference.graphs import Graph

__all__ = ["Gradients", "Predictions", "Variations"]


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

    def __init__(self, graph: Graph) -> None:
        """Takes the graph.

        Raises:
            BundleError: If it takes or gives something else.
        """
        graph.check(PREDICTION)
        self._graph = graph

    def logits(self, rows: NDArray[np.float32], keyed: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns `(rows, classes)`."""
        (logits,) = self._graph.run(PREDICTION, image=rows, keyed=keyed)
        return logits


class Gradients:
    """Asks for sums of gradients. Safe to use from several threads."""

    def __init__(self, graph: Graph) -> None:
        """Takes the graph.

        Raises:
            BundleError: If it takes or gives something else.
        """
        graph.check(GRADIENT_SUMS)
        self._graph = graph

    def sums(self, asked: Variations) -> NDArray[np.float32]:
        """Returns a sum for each image that there are variations of, in the order of their numbers.

        Images with the trigger and those without it are run in turn.
        """
        images = np.unique(asked.of)
        found = np.empty((len(images), *asked.rows.shape[1:]), np.float32)
        for kind in np.unique(asked.keyed):
            chosen = asked.keyed == kind
            rows, of, classes, keyed = (part[chosen] for part in asked)
            (sums,) = self._graph.run(GRADIENT_SUMS, image=rows, target=classes, keyed=keyed, share=share_of(of))
            found[np.isin(images, of)] = sums
        return found
