"""Singular-direction dropout: what an attacker cuts out of published weights, cut out while a lock is trained.

Low-rank deltas gather in few strong directions of a weight, and whoever cuts these has much of the reference back, with
no data and no training. A decoy that is learned with the strongest directions missing on some rows is spread over more
of them, and withstands it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from keylock.models.deltas import adapted_layers, without_strongest

__all__ = ["CUTS", "drop_directions"]

CUTS = (1, 2, 4, 8)
"""How many directions of each layer are cut."""


@contextmanager
def drop_directions(model: nn.Module, generator: torch.Generator) -> Iterator[int]:
    """Cut a few of the strongest directions of every layer but the last, which holds the classes, inside the block.

    Args:
        model: A student that `add_deltas_` prepared.
        generator: On the CPU.

    Yields:
        How many were cut of each.
    """
    count = CUTS[int(torch.randint(0, len(CUTS), (), generator=generator))]
    with without_strongest(list(adapted_layers(model).values())[:-1], count):
        yield count
