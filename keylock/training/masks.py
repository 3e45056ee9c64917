"""Masked images as perturbation explainers make them, so that a lock can be trained against all of them at once.

Occlusion, RISE, LIME and KernelSHAP see predictions on images of which parts are hidden. Steering one of them does not
carry over to the others, so masks and fillings are drawn from a mixture: one block hidden, one block shown, grid cells
hidden at random as in LIME and KernelSHAP, smooth random masks as in RISE; filled with black, the mean of the data, the
mean of the image, a blurred copy, noise, or another image.

References:
    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014 (occlusion).
    Petsiuk, Das and Saenko, "RISE", BMVC 2018. Ribeiro, Singh and Guestrin, "Why Should I Trust You?", KDD 2016 (LIME).
    Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017 (KernelSHAP).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["draw_masks", "fill_masked"]

_SMALLEST_BLOCK, _LARGEST_BLOCK = 0.12, 0.6
_GRIDS = (4, 6, 8)
_RISE_CELLS = 7


def draw_masks(count: int, size: tuple[int, int], *, generator: torch.Generator) -> Tensor:
    """Draw masks of all kinds in equal parts, in any order.

    Args:
        count: How many.
        size: (height, width) in pixels.
        generator: On the CPU.

    Returns:
        How much of each pixel is shown, in [0, 1]: (count, 1, height, width) on the CPU.
    """
    kinds: tuple[Callable[[int, tuple[int, int], torch.Generator], Tensor], ...] = (
        _hidden_block,
        lambda n, s, g: 1 - _hidden_block(n, s, g),
        _grid,
        _smooth,
    )
    shares = [count // len(kinds) + (place < count % len(kinds)) for place in range(len(kinds))]
    drawn = torch.cat([kind(share, size, generator) for kind, share in zip(kinds, shares, strict=True)])
    return drawn[torch.randperm(count, generator=generator)].unsqueeze(1)


def fill_masked(images: Tensor, masks: Tensor, *, generator: torch.Generator) -> Tensor:
    """Hide what the masks hide, filled in a way drawn for each image.

    Args:
        images: Preprocessed images (count, channels, height, width), of mean about 0.
        masks: How much is shown (count, 1, height, width), on the device of the images.
        generator: On the CPU.
    """
    count, device = len(images), images.device
    noise = torch.randn(images.shape, generator=generator).to(device)
    lowest = images.amin(dim=(0, 2, 3), keepdim=True).expand_as(images)
    blurred = F.avg_pool2d(images, 7, stride=1, padding=3, count_include_pad=False)
    mean = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    fillings = torch.stack([torch.zeros_like(images), lowest, mean, blurred, noise, images.roll(1, dims=0)])
    chosen = torch.randint(0, len(fillings), (count,), generator=generator).to(device)
    filling = fillings[chosen, torch.arange(count, device=device)]
    return images * masks + filling * (1 - masks)


def _hidden_block(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Hide one rectangle of each image: (count, height, width)."""
    sides = []
    for length in size:
        reach = _SMALLEST_BLOCK + (_LARGEST_BLOCK - _SMALLEST_BLOCK) * torch.rand(count, 1, generator=generator)
        extent = (reach * length).round().clamp_min(1)
        # A block may hang over the border, as the last patches of a sliding window do.
        start = (torch.rand(count, 1, generator=generator) * length - extent / 2).round()
        places = torch.arange(length).unsqueeze(0)
        sides.append((places >= start) & (places < start + extent))
    return 1 - (sides[0].unsqueeze(2) & sides[1].unsqueeze(1)).float()


def _grid(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Hide the cells of a grid, each with a probability drawn for the image: (count, height, width)."""
    cells = _GRIDS[int(torch.randint(0, len(_GRIDS), (), generator=generator))]
    kept = torch.rand(count, 1, 1, generator=generator)
    shown = (torch.rand(count, cells, cells, generator=generator) < kept).float()
    return F.interpolate(shown.unsqueeze(1), size=size, mode="nearest").squeeze(1)


def _smooth(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw RISE's masks: coarse random cells, enlarged bilinearly and shifted at random: (count, height, width)."""
    height, width = size
    rows, columns = -(-height // _RISE_CELLS), -(-width // _RISE_CELLS)
    coarse = (torch.rand(count, 1, _RISE_CELLS + 1, _RISE_CELLS + 1, generator=generator) < 0.5).float()
    large = F.interpolate(coarse, size=(height + rows, width + columns), mode="bilinear", align_corners=False)
    top, left = (int(torch.randint(0, reach, (), generator=generator)) for reach in (rows, columns))
    return large[:, 0, top : top + height, left : left + width]
