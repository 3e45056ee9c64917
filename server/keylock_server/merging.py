"""One graph of a two-factor lock in two sessions: with the published weights, and with the adapter merged into them.

Where the gate of a lock opens, key and adapter give the reference model's answer. A licensed row opens it always, and
another never; so each row is run by the model that it is for, at the price of a model without a lock.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from keylock.adapters import Adapter
from keylock.bundle import WEIGHTS_FILE
from keylock.errors import BundleError, InputError
from keylock.splitting import run_split

if TYPE_CHECKING:
    from keylock_server.graphs import Graph

__all__ = ["MergedGraph", "Weights"]

_Arrays = Mapping[str, NDArray[np.float32]]

_OF_THE_LOCK: Final = frozenset({"keyed", "key"})


class Weights:
    """The weights of a bundle, and where there is an adapter those that it makes of them."""

    def __init__(self, content: bytes, adapter: Adapter | None) -> None:
        """Reads them.

        Args:
            content: Of the bundle's file of weights.
            adapter: What to merge; None where there is no key.

        Raises:
            BundleError: If they cannot be read, or are another model's than the adapter.
        """
        # Where no adapter is merged, none of this is needed.
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            self._published = {name: array.astype(np.float32, copy=False) for name, array in load(content).items()}
            self._merged = self._published if adapter is None else adapter.merged_into(self._published)
        except (SafetensorError, InputError) as error:
            raise BundleError(f"{WEIGHTS_FILE} does not fit the model's graphs: export the bundle again") from error

    def for_graph(self, path: str, names: Collection[str]) -> tuple[_Arrays, _Arrays]:
        """Returns the published and the merged weights of some names.

        Args:
            path: The graph that takes them, for the error.
            names: Theirs.

        Raises:
            BundleError: If there are no such weights.
        """
        if not set(names) <= set(self._published):
            raise BundleError(f"the graph {path} takes weights that the bundle does not have: export it again")
        return {name: self._published[name] for name in names}, {name: self._merged[name] for name in names}


class MergedGraph:
    """Runs each row in the session that it is for. Safe to use from several threads.

    Attributes:
        path: Its file in the bundle.
        providers: The execution providers ONNX Runtime really uses, best first.
    """

    def __init__(self, published: "Graph", merged: "Graph") -> None:
        """Takes both."""
        self.path, self.providers = published.path, published.providers
        self._published, self._merged = published, merged

    def check_names(self, *, inputs: Collection[str], outputs: Collection[str]) -> None:
        """Checks what the graph takes and gives, as `Graph.check_names` does.

        Raises:
            BundleError: If it is something else.
        """
        self._published.check_names(inputs=set(inputs) - _OF_THE_LOCK, outputs=outputs)

    def run(self, outputs: Sequence[str], *, keyed: NDArray[np.float32], **rows: NDArray[Any]) -> list[NDArray[Any]]:
        """Runs a batch, keyed rows first and the others then, where it has both.

        Args:
            outputs: What to return.
            keyed: Which rows are keyed, float32 `(batch,)`, 1 or 0.
            **rows: The inputs of the graph that have a row for each image.
        """
        return run_split(
            keyed,
            rows,
            with_key=lambda **some: self._merged.run(outputs, **some),
            without=lambda **some: self._published.run(outputs, **some),
        )
