"""What answers one kind of rows of a lock: the network in torch that is right, and the weights that graphs get."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from keylock.explainers import Explainer
from keylock.export.running import FloatArray, IntArray, Weights, open_graph
from keylock.iterative import Loop
from keylock.models import added_to_inputs, arrays_of

__all__ = ["Side", "surest_images"]


@dataclass(frozen=True, eq=False)
class Side:
    """What answers one kind of rows of a lock: with the trigger on them, or without.

    Attributes:
        module: The classifier in torch whose answers are right; it is run in eval mode, and given back in the mode it
            was in.
        weights: What graphs are given; those of `module` where that is None.
        offset: The trigger (C, H, W), where the network itself tells it, added to everything that is run.
    """

    module: nn.Module
    weights: Weights | None = None
    offset: FloatArray | None = None

    def open(self, graph: bytes) -> Any:  # noqa: ANN401 - ONNX Runtime has no type stubs
        """Open a graph in ONNX Runtime with the weights."""
        return open_graph(graph, arrays_of(self.module) if self.weights is None else self.weights)

    def shown(self, images: FloatArray) -> FloatArray:
        """Return what the network is shown of images (batch, C, H, W)."""
        return images if self.offset is None else np.asarray(images + self.offset, np.float32)

    def explained(self, explainer: Explainer, images: FloatArray, targets: IntArray) -> tuple[FloatArray, FloatArray]:
        """Return the logits and maps of torch. A loop varies the image and not the trigger, which is added last."""
        logits, maps = [], []
        varies = isinstance(explainer, Loop) and self.offset is not None
        added = torch.from_numpy(self.offset) if varies and self.offset is not None else None
        shown = images if varies else self.shown(images)
        with _evaluating(self.module), added_to_inputs(self.module, added):
            for start in range(0, len(images), 64):
                batch = _to_torch(shown[start : start + 64], self.module)
                classes = torch.from_numpy(targets[start : start + 64]).to(batch.device)
                explained = explainer.explain(self.module, batch, classes)
                logits.append(explained.logits.detach().float().cpu().numpy())
                maps.append(explained.maps.detach().float().cpu().numpy())
        return np.concatenate(logits), np.concatenate(maps)

    def predicted(self, images: FloatArray) -> FloatArray:
        """Return the logits (batch, classes) of torch."""
        with _evaluating(self.module), torch.no_grad():
            logits: FloatArray = self.module(_to_torch(self.shown(images), self.module)).float().cpu().numpy()
        return logits


def surest_images(sides: tuple[Side, ...], images: FloatArray, *, count: int) -> FloatArray:
    """Return the images of which a lock is surest on every side, in their order.

    Their class stays where another runtime rounds in another way, and with it their map.

    Args:
        sides: What answers.
        images: Preprocessed images float32 `(batch, C, H, W)`.
        count: How many to return, at most.
    """
    margins = [np.diff(np.sort(side.predicted(images), axis=1)[:, -2:], axis=1)[:, 0] for side in sides]
    chosen = np.argsort(-np.min(margins, axis=0), kind="stable")[:count]
    return images[np.sort(chosen)]


def _to_torch(images: FloatArray, module: nn.Module) -> torch.Tensor:
    parameter = next(module.parameters(), torch.empty(0))
    return torch.from_numpy(images).to(parameter.device, parameter.dtype)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Run `module` in eval mode inside the block, and give every layer its own mode back."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training
