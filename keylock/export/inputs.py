"""What the graphs take: names, shapes, and which inputs have a row for each image.

Beside its rows a graph takes the entries of the weights that a lock seals, by their names in the model.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = [
    "ROWS",
    "SHARE",
    "TRACED_BATCH",
    "GraphInput",
    "prediction_inputs",
    "share_input",
    "target_input",
    "weight_inputs",
]

TRACED_BATCH = 7
"""Batch size of the examples. A number that no layer has as its channel count, so that the two are never confused."""

SHARE = "share"
"""The input that says how much of each row is in the sum of each image."""

ROWS = frozenset({"image", "target", SHARE})
"""The inputs that differ from batch to batch."""

_TRACED_IMAGES = 5


@dataclass(frozen=True)
class GraphInput:
    """One input of a graph.

    Attributes:
        name: Its name in the graph.
        example: Zeros of its type and shape.
        batched: Whether its first dimension is left open: the batch, unless the second one is.
        by_row: Whether its second dimension is the batch.
    """

    name: str
    example: Tensor
    batched: bool = True
    by_row: bool = False


def prediction_inputs(image_shape: tuple[int, int, int]) -> list[GraphInput]:
    """Return `image`, float32 (batch, C, H, W)."""
    return [GraphInput("image", torch.zeros(TRACED_BATCH, *image_shape))]


def target_input() -> GraphInput:
    """Return `target` int64 (batch,)."""
    return GraphInput("target", torch.zeros(TRACED_BATCH, dtype=torch.int64))


def share_input() -> GraphInput:
    """Return `share` float32 (images, batch)."""
    return GraphInput(SHARE, torch.zeros(_TRACED_IMAGES, TRACED_BATCH), by_row=True)


def weight_inputs(network: nn.Module, names: Iterable[str]) -> list[GraphInput]:
    """Return one input for each of some entries of a network's `state_dict()`.

    Raises:
        KeyError: The network has no such entry.
    """
    entries = network.state_dict()
    return [GraphInput(name, torch.zeros_like(entries[name]), batched=False) for name in names]
