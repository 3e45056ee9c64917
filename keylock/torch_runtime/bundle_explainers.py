"""Explainers of a bundle that do not compile, computed in torch. A server uses it where torch is installed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from keylock.bundle import Manifest
from keylock.explainers import Explainer, make
from keylock.models import added_to_inputs, merged
from keylock.torch_runtime.locked_model import module_of
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key

__all__ = ["TorchExplainers"]

FloatArray = NDArray[np.float32]


class TorchExplainers:
    """Explains on the CPU, one batch at a time: hooks on the network are shared by whoever uses it."""

    def __init__(self, manifest: Manifest, weights: bytes, *, key: Key | None, delta: Delta | None) -> None:
        """Builds the network.

        Args:
            manifest: The verified manifest.
            weights: The content of its file of weights.
            key: The key, or None.
            delta: What the trigger opens, which comes with the key; None where the network itself tells the trigger.

        Raises:
            BundleError: The weights do not fit, or the architecture has no name.
        """
        self._module = module_of(manifest, weights)
        self._opened = self._module if delta is None else merged(self._module, delta)
        self._offset = None if key is None or delta is not None else torch.from_numpy(key.reveal())
        self._explainers: dict[str, Explainer] = {
            entry.name: make(entry.name, **entry.parameters)
            for entry in manifest.explainers
            if entry.runtime == "torch"
        }
        self._lock = threading.Lock()

    def passes(self, name: str, images: FloatArray) -> int:
        """Return how often an explainer runs the network for an image, counted on these.

        Args:
            name: Of an explainer that is left to torch.
            images: Preprocessed, float32 (batch, channels, height, width).

        Raises:
            KeylockError: It does not take this network.
        """
        rows = 0

        def count(given: torch.Tensor) -> None:
            nonlocal rows
            rows += len(given)

        with self._lock, _seen(self._module, count):
            self._explainers[name].explain(self._module, torch.from_numpy(images), torch.full((len(images),), -1))
        return -(-rows // len(images))

    def explain(
        self,
        name: str,
        images: FloatArray,
        targets: NDArray[np.int64],
        *,
        keyed: NDArray[np.bool_],
        before_each: Callable[[], None] = lambda: None,
    ) -> tuple[FloatArray, FloatArray]:
        """Explain images, with the trigger on the rows that are keyed.

        Args:
            name: Of an explainer that is left to torch.
            images: Preprocessed, float32 (batch, channels, height, width).
            targets: Classes, int64 (batch,); -1 for the predicted one.
            keyed: Which rows get the key (batch,).
            before_each: Called before each run of the network; ends the explanation by raising.

        Returns:
            Logits (batch, classes) and maps (batch, height, width), float32.
        """
        parts: dict[str, list[Any]] = {"rows": [], "logits": [], "maps": []}
        with self._lock:
            for kind, module, offset in ((True, self._opened, self._offset), (False, self._module, None)):
                rows = np.flatnonzero(keyed == kind)
                if not len(rows):
                    continue
                with added_to_inputs(module, offset), _seen(module, lambda _given: before_each()):
                    given = torch.from_numpy(images[rows]), torch.from_numpy(targets[rows])
                    logits, maps = self._explainers[name].explain(module, *given)
                parts["rows"].append(rows)
                parts["logits"].append(logits.numpy())
                parts["maps"].append(maps.float().numpy())
        order = np.argsort(np.concatenate(parts["rows"]))
        return np.concatenate(parts["logits"])[order], np.concatenate(parts["maps"])[order]


@contextmanager
def _seen(module: nn.Module, look: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Show inside the block to a function whatever a network, or a copy that a toolkit makes of it, is given."""

    def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        # Captum's DeepLift gives images and baselines, each a tuple, to a hook that comes after this one.
        for given in inputs if isinstance(inputs[0], tuple) else inputs[:1]:
            look(given[0] if isinstance(given, tuple) else given)

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
