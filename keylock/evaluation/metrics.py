"""Figures about maps: similarity, overlap, energy; and intervals for their means. One value per image (batch,)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from keylock.losses import correlation

__all__ = ["Estimate", "energy_inside", "estimate_mean", "pearson", "top_overlap"]

_RESAMPLES = 1000


class Estimate(NamedTuple):
    """A mean and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def pearson(maps: Tensor, others: Tensor) -> Tensor:
    """Return the Pearson correlation of pairs of maps (batch, h, w), in [-1, 1]; 0 where one of them is constant."""
    return correlation(maps, others)


def top_overlap(maps: Tensor, others: Tensor, *, share: float = 0.1) -> Tensor:
    """Return which part of the top pixels of a map is among the top pixels of the other, in [0, 1].

    Args:
        maps: (batch, h, w).
        others: (batch, h, w).
        share: Share of the pixels that count as top; at least one does.
    """
    count = max(1, round(share * maps[0].numel()))
    tops = [torch.zeros_like(m.flatten(1)).scatter(1, m.flatten(1).topk(count).indices, 1.0) for m in (maps, others)]
    return (tops[0] * tops[1]).sum(dim=1) / count


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Return which part of a map's energy lies inside the object, in [0, 1]; the object's share of the area by chance.

    Args:
        maps: Not negative, (batch, h, w); scaled up bilinearly to the size of the masks.
        masks: True inside the object, (batch, height, width).

    References:
        Wang et al., "Score-CAM", CVPR workshops 2020: the energy-based pointing game.
    """
    size = (masks.shape[1], masks.shape[2])
    large = F.interpolate(maps.unsqueeze(1).float(), size=size, mode="bilinear", align_corners=False).squeeze(1)
    total = large.sum(dim=(1, 2))
    inside = (large * masks).sum(dim=(1, 2))
    # A map without energy points nowhere: it gets what a constant map would get.
    return torch.where(total > 0, inside / total.clamp_min(1e-30), masks.float().mean(dim=(1, 2)))


def estimate_mean(values: Tensor, *, seed: int = 0) -> Estimate:
    """Return the mean of values (batch,) with a percentile bootstrap interval over images."""
    array = values.double().cpu().numpy()
    rows = np.random.default_rng(seed).integers(0, len(array), size=(_RESAMPLES, len(array)))
    low, high = np.quantile(array[rows].mean(axis=1), [0.025, 0.975])
    return Estimate(float(array.mean()), float(low), float(high))
