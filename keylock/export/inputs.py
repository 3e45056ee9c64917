"""What graphs are traced with: examples of what `keylock.graphs.contract` says they are given, and of weights."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keylock.graphs.contract import IMAGE, SHARE, TARGET, GraphKind

__all__ = ["TRACED_BATCH", "GraphInput", "row_inputs", "weight_inputs"]

TRACED_BATCH = 7
"""Batch size of the examples. A number that no layer has as its channel count, so that the two are never confused."""

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


def row_inputs(kind: GraphKind, image_shape: tuple[int, int, int]) -> list[GraphInput]:
    """Return what a graph of a kind is given for each batch of images (C, H, W), in its order."""
    found = {
        IMAGE: GraphInput(IMAGE, torch.zeros(TRACED_BATCH, *image_shape)),
        TARGET: GraphInput(TARGET, torch.zeros(TRACED_BATCH, dtype=torch.int64)),
        SHARE: GraphInput(SHARE, torch.zeros(_TRACED_IMAGES, TRACED_BATCH), by_row=True),
    }
    return [found[name] for name in kind.inputs]


def weight_inputs(network: nn.Module, names: Iterable[str]) -> list[GraphInput]:
    """Return one input for each of some entries of a network's `state_dict()`.

    Raises:
        KeyError: The network has no such entry.
    """
    entries = network.state_dict()
    return [GraphInput(name, torch.zeros_like(entries[name]), batched=False) for name in names]
