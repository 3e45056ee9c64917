"""Whether a map points at the object: energy inside of it, the pointing game, and what random maps get.

A mask is True inside the object; a box is a mask that is a rectangle. One value per image (batch,).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from keylock.evaluation.similarity import enlarge
from keylock.locking.losses import is_constant

__all__ = ["energy_inside", "pointing_game", "random_maps"]


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Return which part of a map's energy lies inside the object, in [0, 1]; the object's share of the area by chance.

    Args:
        maps: Not negative, (batch, h, w); scaled up bilinearly to the size of the masks.
        masks: True inside the object, (batch, height, width).

    References:
        Wang et al., "Score-CAM", CVPR workshops 2020: the energy-based pointing game.
    """
    large = enlarge(maps, (masks.shape[1], masks.shape[2]))
    total = large.sum(dim=(1, 2))
    inside = (large * masks).sum(dim=(1, 2))
    # A map without energy points nowhere: it gets what a constant map would get.
    return torch.where(total > 0, inside / total.clamp_min(1e-30), masks.float().mean(dim=(1, 2)))


def pointing_game(maps: Tensor, masks: Tensor, *, tolerance: int = 0) -> Tensor:
    """Return whether the largest pixel of a map lies inside the object, in [0, 1].

    Where several pixels are the largest, it is their share inside the object: the chance to hit with one of them. A
    constant map gets the object's share of the area.

    Args:
        maps: (batch, h, w); scaled up bilinearly to the size of the masks.
        masks: True inside the object, (batch, height, width).
        tolerance: A miss by so many pixels in each direction still counts as a hit.

    References:
        Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016, section 4.1, with a tolerance of
        15 pixels on photos of PASCAL VOC.
    """
    inside = masks.float()
    if tolerance:
        side = 2 * tolerance + 1
        inside = F.max_pool2d(inside.unsqueeze(1), side, stride=1, padding=tolerance).squeeze(1)
    large = enlarge(maps, (masks.shape[1], masks.shape[2]))
    even = is_constant(large).view(-1, 1, 1)
    largest = ((large == large.amax(dim=(1, 2), keepdim=True)) | even).float()
    return (largest * inside).sum(dim=(1, 2)) / largest.sum(dim=(1, 2))


def random_maps(maps: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return maps of the same shape (batch, h, w) whose pixels are drawn uniformly from [0, 1]: the floor.

    They have no preference for the middle of the image, where photographers put their objects. Coarse maps keep their
    peaks at the border better than inside when they are enlarged, so the floor of the pointing game is then below the
    object's share of the area: it is what the same interpolation makes of noise.

    Args:
        maps: Gives shape and device.
        generator: On the CPU.
    """
    return torch.rand(maps.shape, generator=generator).to(maps.device)
