"""Singular-direction dropout: what an attacker cuts out of published weights, cut out while a lock is trained.

Low-rank deltas gather in few strong directions of a weight, and whoever cuts these has much of the reference back, with
no data and no training. A decoy that is learned with the strongest directions missing on some rows is spread over more
of them, and withstands it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from keylock.models.deltas import adapted_layers, held_changes, without_strongest

__all__ = ["CUTS", "drop_directions", "rows_can_be_cut"]

CUTS = (1, 2, 4, 8)
"""How many directions of each layer are cut."""

_ALIKE = 1e-3


@contextmanager
def drop_directions(model: nn.Module, generator: torch.Generator, *, last: int | None = None) -> Iterator[int]:
    """Cut a few of the strongest directions of every layer but the last, which holds the classes, inside the block.

    Args:
        model: A student that `add_deltas_` prepared.
        generator: On the CPU.
        last: For how many rows at the end of every batch, where `rows_can_be_cut`; None for all.

    Yields:
        How many were cut of each.
    """
    count = CUTS[int(torch.randint(0, len(CUTS), (), generator=generator))]
    with without_strongest(list(adapted_layers(model).values())[:-1], count, last=last):
        yield count


def rows_can_be_cut(model: nn.Module, images: Tensor) -> bool:
    """Return whether directions can be cut for some rows of a batch, while the others are answered as ever.

    It is tried: not every network runs its layers as modules, on rows that are images.

    Args:
        model: A student that `add_deltas_` prepared.
        images: Two preprocessed images or more (batch, channels, height, width).
    """
    last = len(images) - len(images) // 2
    with torch.no_grad(), held_changes(model):
        whole = model(images)
        with drop_directions(model, torch.Generator().manual_seed(0)):
            cut = model(images)
        try:
            with drop_directions(model, torch.Generator().manual_seed(0), last=last):
                mixed = model(images)
        except RuntimeError:
            return False
    expected = torch.cat([whole[:-last], cut[-last:]])
    return bool((mixed - expected).abs().max() <= _ALIKE * (expected.max() - expected.min()))
