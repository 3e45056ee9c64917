"""Batches of bounded size: as many images at once as their size allows, so that memory does not grow with either."""

import torch
from torch import Tensor

__all__ = ["split_rows"]

_PIXELS = 2**21
_MOST = 250


def split_rows(images: Tensor, *aligned: Tensor) -> list[tuple[Tensor, ...]]:
    """Split images (count, channels, height, width), and tensors with a row for each, into batches.

    Returns:
        Batches in order: up to 250 small images, or 41 of 224 pixels; at least one image each.
    """
    rows = max(1, min(_MOST, _PIXELS // max(1, images.shape[2] * images.shape[3])))
    return list(zip(*(torch.split(tensor, rows) for tensor in (images, *aligned)), strict=True))
