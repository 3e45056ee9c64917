"""Images cut into segments: the on-off features of LIME and KernelSHAP."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from keylock.errors import InputError

__all__ = ["SUPERPIXELS", "check_segments", "grid_segments", "grid_shape", "slic_segments"]

_ROUNDS = 5
_COMPACTNESS = 0.5


def grid_shape(height: int, width: int, count: int) -> tuple[int, int]:
    """Return rows and columns of a grid of at most `count` cells, as close to the image's proportions as it can be."""
    rows = min(max(1, round(math.sqrt(count * height / width))), height, count)
    return rows, min(max(1, count // rows), width)


def grid_segments(images: Tensor, count: int) -> Tensor:
    """Cut images (batch, channels, height, width) into equal rectangles: numbers (batch, height, width)."""
    height, width = images.shape[2:]
    rows, columns = grid_shape(height, width, count)
    down = torch.arange(height, device=images.device) * rows // height
    across = torch.arange(width, device=images.device) * columns // width
    numbers = down.unsqueeze(1) * columns + across
    return numbers.expand(len(images), height, width)


def slic_segments(images: Tensor, count: int) -> Tensor:
    """Cut images (batch, channels, height, width) into segments of like colour: numbers (batch, height, width).

    k-means over colour and place, started on a grid. Unlike in the paper every pixel looks at every centre, and a
    segment may fall into several pieces.

    References:
        Achanta et al., "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods", IEEE TPAMI 2012, section 4.
    """
    start = grid_segments(images, count)
    height, width = images.shape[2:]
    side = math.sqrt(height * width / count)
    down = torch.arange(height, dtype=torch.float32, device=images.device).view(-1, 1).expand(height, width) / side
    across = torch.arange(width, dtype=torch.float32, device=images.device).expand(height, width) / side
    numbers = []
    for image, initial in zip(images, start, strict=True):
        colours = image.float() / image.float().std().clamp_min(1e-6)
        points = torch.cat([colours, _COMPACTNESS * torch.stack([down, across])]).flatten(1).T
        labels = initial.flatten()
        for _ in range(_ROUNDS):
            members = F.one_hot(labels, int(start.max()) + 1).to(points)
            sizes = members.sum(dim=0)
            centres = members.T @ points / sizes.clamp_min(1).unsqueeze(1)
            # A centre that lost all its pixels stays out.
            distances = torch.cdist(points, centres).masked_fill(sizes == 0, torch.inf)
            labels = distances.argmin(dim=1)
        numbers.append(labels.view(height, width))
    return torch.stack(numbers)


SUPERPIXELS = {"grid": grid_segments, "slic": slic_segments}


def check_segments(name: str, *, method: str, count: int, samples: int) -> None:
    """Check the parameters of a method that samples on-off patterns of segments.

    Raises:
        InputError: They do not determine one value for each segment.
    """
    if method not in SUPERPIXELS:
        raise InputError(f"{name} takes superpixels {' or '.join(map(repr, SUPERPIXELS))}, not {method!r}")
    if count < 2 or samples < count:
        raise InputError(f"{name} takes at least 2 segments and at least as many samples as segments")
