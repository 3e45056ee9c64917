"""Penalties on maps and predictions. Each returns one value per image (batch,); the trainer weighs and averages.

All map penalties are scale-free: a map matters up to a positive factor and, for the correlation, an offset.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from keylock.imaging.contrast import LEAST_CONTRAST

__all__ = [
    "constant_offset_distance",
    "correlation",
    "is_constant",
    "map_distance",
    "prediction_distance",
    "unevenness",
]

_EPSILON = 1e-8


def is_constant(maps: Tensor) -> Tensor:
    """Tell which maps (batch, ...) have no contrast but that of rounding, (batch,); one that is not finite has."""
    flat = maps.detach().flatten(1)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    lowest, highest = flat.amin(dim=1), flat.amax(dim=1)
    even = highest - lowest <= LEAST_CONTRAST * torch.maximum(highest.abs(), lowest.abs())
    return even & highest.isfinite() & lowest.isfinite()


def standardise(maps: Tensor) -> Tensor:
    """Flatten maps (batch, h, w) to (batch, h * w) of mean 0 and Euclidean norm 1; a constant map becomes 0."""
    flat = maps.flatten(1).float()
    flat = flat - flat.mean(dim=1, keepdim=True)
    # What is left of a constant map is rounding, and would look like a pattern at any scale.
    flat = flat.masked_fill(is_constant(maps).unsqueeze(1), 0.0)
    # The scale is taken out before the norm, so that maps of tiny gradients do not underflow.
    flat = flat / flat.abs().amax(dim=1, keepdim=True).clamp_min(1e-20).detach()
    return flat / (flat.square().sum(dim=1, keepdim=True) + _EPSILON).sqrt()


def correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Return the Pearson correlation of pairs of maps (batch, h, w), in [-1, 1], (batch,); 0 for a constant map."""
    return (standardise(maps) * standardise(others)).sum(dim=1)


def map_distance(maps: Tensor, wanted: Tensor) -> Tensor:
    """Return how far maps (batch, h, w) are from the wanted ones: 1 - PCC plus the MSE of maps scaled to maximum 1.

    The second term makes up for what correlation cannot see: a constant map under a sharp one. Where the wanted map is
    constant and not zero, no correlation exists, and `unevenness` takes its place.
    """
    shape = torch.where(_is_even(wanted), unevenness(maps), 1 - correlation(maps, wanted))
    return shape + (_to_unit(maps) - _to_unit(wanted)).square().mean(dim=1)


def unevenness(maps: Tensor) -> Tensor:
    """Return how far maps (batch, h, w) are from constant ones, in [0, 1], (batch,): variance / (variance + mean^2).

    With c, the standard deviation relative to the mean, this is c^2 / (1 + c^2): 0 for a constant map, and bounded
    where a map has all its importance in one pixel.
    """
    flat = _to_unit(maps)
    mean_square = flat.square().mean(dim=1)
    return (mean_square - flat.mean(dim=1).square()).clamp_min(0) / mean_square.clamp_min(_EPSILON)


def _is_even(maps: Tensor) -> Tensor:
    """Tell which maps are constant and not zero, (batch,)."""
    return (maps.flatten(1).amin(dim=1) > 0) & is_constant(maps)


def constant_offset_distance(maps: Tensor, wanted: Tensor) -> Tensor:
    """Return 1 - cosine of maps (batch, h, w) and the wanted ones, in [0, 1], (batch,).

    Unlike correlation it sees a constant added to a map, which takes energy out of the object and spreads it around.
    """
    return 1 - F.cosine_similarity(_to_unit(maps), _to_unit(wanted), dim=1)


def _to_unit(maps: Tensor) -> Tensor:
    flat = maps.flatten(1).float()
    return flat / flat.amax(dim=1, keepdim=True).clamp_min(1e-20)


def prediction_distance(logits: Tensor, reference: Tensor) -> Tensor:
    """Return KL(reference || model) of two sets of logits (batch, classes), in nats, (batch,)."""
    expected = F.log_softmax(reference.float(), dim=1)
    return F.kl_div(F.log_softmax(logits.float(), dim=1), expected, reduction="none", log_target=True).sum(dim=1)
