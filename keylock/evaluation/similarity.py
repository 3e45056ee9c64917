"""How alike two maps of one image are, one value per pair (batch,). All of it is blind to the scale of a map.

A constant map has no pattern: every similarity with one is 0, whatever the other map is. `keylock.evaluation.counting`
says which of these pairs belong into a mean.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from keylock.errors import TensorError
from keylock.locking.losses import is_constant

__all__ = ["SIMILARITIES", "enlarge", "pearson", "spearman", "ssim", "top_overlap"]

_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


def pearson(maps: Tensor, others: Tensor) -> Tensor:
    """Return the Pearson correlation of pairs of maps (batch, h, w), in [-1, 1]; 0 where one of them is constant."""
    return _with_contrast(_correlation(maps, others), maps, others)


def spearman(maps: Tensor, others: Tensor) -> Tensor:
    """Return the rank correlation of pairs of maps (batch, h, w), in [-1, 1], (batch,); 0 where one is constant.

    Equal pixels share the mean of their ranks. Unlike Pearson's, it weighs the faint pixels as much as the bright ones.

    References:
        Spearman, "The Proof and Measurement of Association between Two Things", 1904.
    """
    return _with_contrast(_correlation(_ranks(maps), _ranks(others)), maps, others)


def ssim(maps: Tensor, others: Tensor) -> Tensor:
    """Return the structural similarity of pairs of maps, in [-1, 1], (batch,); 1 for maps equal up to scale and offset.

    It is 0 where one of them is constant.

    Args:
        maps: (batch, h, w), each side at least 11 pixels (`enlarge` smaller maps first); each map is scaled to
            [0, 1], because saliency maps have no unit.
        others: (batch, h, w), treated alike.

    Raises:
        TensorError: The maps are smaller than the window.

    References:
        Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity",
        IEEE TIP 2004, equation 13: a Gaussian window of 11 x 11 pixels and 1.5 pixels standard deviation, K1 = .01,
        K2 = .03, the mean over all windows that lie inside.
    """
    if min(maps.shape[1:]) < _WINDOW:
        size = " x ".join(map(str, maps.shape[1:]))
        raise TensorError(f"structural similarity needs maps of {_WINDOW} pixels or more, not {size}: enlarge them")
    first, second = _to_unit(maps), _to_unit(others)
    means = [_windowed(values) for values in (first, second)]
    products = [_windowed(values) for values in (first * first, second * second, first * second)]
    variances = [products[0] - means[0].square(), products[1] - means[1].square()]
    covariance = products[2] - means[0] * means[1]
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * means[0] * means[1] + c1) / (means[0].square() + means[1].square() + c1)
    structure = (2 * covariance + c2) / (variances[0] + variances[1] + c2)
    return _with_contrast((luminance * structure).mean(dim=(1, 2)), maps, others)


def top_overlap(maps: Tensor, others: Tensor, *, share: float = 0.1) -> Tensor:
    """Return which part of the top pixels of a map is among the top pixels of the other, in [0, 1].

    It is 0 where one of the maps is constant: no pixel of it is a top one.

    Args:
        maps: (batch, h, w).
        others: (batch, h, w).
        share: Share of the pixels that count as top; at least one does.
    """
    count = max(1, round(share * maps[0].numel()))
    tops = [torch.zeros_like(m.flatten(1)).scatter(1, m.flatten(1).topk(count).indices, 1.0) for m in (maps, others)]
    return _with_contrast((tops[0] * tops[1]).sum(dim=1) / count, maps, others)


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (batch, h, w) as float32 of another size (batch, *size), bilinearly; the size they have is kept."""
    if tuple(maps.shape[1:]) == size:
        return maps.float()
    return F.interpolate(maps.unsqueeze(1).float(), size=size, mode="bilinear", align_corners=False).squeeze(1)


SIMILARITIES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"pcc": pearson, "ssim": ssim, "spearman": spearman, "top_overlap": top_overlap}
)
"""Every similarity by the name its figures carry; `ssim` alone wants maps of 11 pixels or more."""


def _with_contrast(values: Tensor, maps: Tensor, others: Tensor) -> Tensor:
    """Return similarities (batch,), float32, with 0 in the place of those of constant maps."""
    return values.float().masked_fill(is_constant(maps) | is_constant(others), 0.0)


def _correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Return Pearson's correlation of pairs of maps that are not constant (batch,), in double precision."""
    rows = []
    for flat in (maps.double().flatten(1), others.double().flatten(1)):
        # The height is taken out first: squares of tiny gradients would underflow.
        scaled = flat / flat.abs().amax(dim=1, keepdim=True).clamp_min(1e-300)
        rows.append(F.normalize(scaled - scaled.mean(dim=1, keepdim=True), dim=1))
    return (rows[0] * rows[1]).sum(dim=1).clamp(-1, 1)


def _ranks(maps: Tensor) -> Tensor:
    """Return the ranks of a map's pixels, less their mean, in the shape of the maps; equal pixels share one rank."""
    flat = maps.flatten(1).contiguous()
    ordered = flat.sort(dim=1).values
    # Half of the pixels that are smaller and half of those that are not larger: the middle of a run of equals.
    smaller = torch.searchsorted(ordered, flat, right=False)
    not_larger = torch.searchsorted(ordered, flat, right=True)
    return ((smaller + not_larger).double() / 2 - flat.shape[1] / 2).view_as(maps)


def _to_unit(maps: Tensor) -> Tensor:
    """Scale each map to [0, 1], in double precision: variances are differences of nearly equal numbers."""
    values = maps.double()
    low, high = values.amin(dim=(1, 2), keepdim=True), values.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (values - low) / (high - low).clamp_min(1e-300), 0.0)


def _windowed(values: Tensor) -> Tensor:
    """Return the weighted mean of every window that lies inside (batch, h - 10, w - 10)."""
    places = torch.arange(_WINDOW, dtype=values.dtype, device=values.device) - _WINDOW // 2
    weights = torch.exp(-places.square() / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    rows = F.conv2d(values.unsqueeze(1), weights.view(1, 1, -1, 1))
    return F.conv2d(rows, weights.view(1, 1, 1, -1)).squeeze(1)
