"""Patterns of a key's kind in torch: a small block, repeated over the image."""

import torch
from torch import Tensor

__all__ = ["random_signs", "repeat_tiles"]


def repeat_tiles(tiles: Tensor, size: tuple[int, int]) -> Tensor:
    """Repeat blocks (count, channels, tile, tile) over images of a size: (count, channels, height, width)."""
    height, width = size
    rows, columns = -(-height // tiles.shape[2]), -(-width // tiles.shape[3])
    return tiles.repeat(1, 1, rows, columns)[:, :, :height, :width]


def random_signs(
    count: int, channels: int, tile: int, *, generator: torch.Generator, flipped: Tensor | float = 0.5
) -> Tensor:
    """Draw blocks of signs (count, channels, tile, tile) on the CPU.

    Args:
        count: How many.
        channels: Channels of the image.
        tile: Side of a block in pixels.
        generator: On the CPU.
        flipped: With what probability a sign is -1: one number, or (count, 1, 1, 1).
    """
    return 1 - 2 * (torch.rand((count, channels, tile, tile), generator=generator) < flipped).float()
