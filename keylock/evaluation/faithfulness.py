"""Whether the pixels a map marks are those the prediction rests on: deletion and insertion curves."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from keylock.errors import InputError
from keylock.evaluation.similarity import enlarge
from keylock.models import split_rows

__all__ = ["Faithfulness", "deletion", "deletion_and_insertion"]

_BLUR_WINDOW, _BLUR_SIGMA = 11, 5.0


class Faithfulness(NamedTuple):
    """Areas under two curves, each in [0, 1].

    Attributes:
        deletion: (batch,); low where removing the marked pixels first makes the class vanish quickly.
        insertion: (batch,); high where showing the marked pixels first makes the class appear quickly.
    """

    deletion: Tensor
    insertion: Tensor


def deletion_and_insertion(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    generator: torch.Generator,
    steps: int = 16,
) -> Faithfulness:
    """Remove and show pixels in the order of a map, and watch the probability of the explained class.

    Deleted pixels become the preprocessing's mean (zero); insertion starts from a blurred copy. Pixels that a map does
    not tell apart come in random order, so that the empty part of a map has no preference for the upper rows.

    Args:
        model: From preprocessed images to logits (batch, classes); what the caller of a prediction sees.
        images: Preprocessed images (batch, channels, height, width).
        maps: (batch, h, w), scaled up bilinearly to the size of the images.
        targets: The explained classes (batch,).
        generator: Breaks ties; on the CPU.
        steps: In how many steps all pixels are removed, at least 1; the curves have one point more.

    Raises:
        InputError: There is no step.

    References:
        Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018,
        section 4.2 (there with one step for every row of pixels; blur of 11 pixels with a deviation of 5).
    """
    ranks = _ranks_in(maps, images, generator, steps)
    return Faithfulness(
        _area(model, ranks, torch.zeros_like(images), images, targets, steps),
        _area(model, ranks, images, _blurred(images), targets, steps),
    )


def deletion(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    generator: torch.Generator,
    steps: int = 16,
) -> Tensor:
    """Return the deletion that `deletion_and_insertion` gives (batch,), for half of its predictions.

    Args:
        model: From preprocessed images to logits (batch, classes).
        images: Preprocessed images (batch, channels, height, width).
        maps: (batch, h, w), scaled up bilinearly to the size of the images.
        targets: The explained classes (batch,).
        generator: Breaks ties; on the CPU.
        steps: In how many steps all pixels are removed, at least 1.

    Raises:
        InputError: There is no step.
    """
    ranks = _ranks_in(maps, images, generator, steps)
    return _area(model, ranks, torch.zeros_like(images), images, targets, steps)


def _area(
    model: Callable[[Tensor], Tensor], ranks: Tensor, first: Tensor, last: Tensor, targets: Tensor, steps: int
) -> Tensor:
    """Return the area (batch,) under the probability of the class while pixels go from `last` to `first` by rank."""
    points = []
    for step in range(steps + 1):
        changed = (ranks < round(step / steps * ranks[0].numel())).unsqueeze(1)
        points.append(_probabilities(model, torch.where(changed, first, last), targets))
    return torch.trapezoid(torch.stack(points), dx=1 / steps, dim=0)


def _ranks_in(maps: Tensor, images: Tensor, generator: torch.Generator, steps: int) -> Tensor:
    """Return the place of every pixel of images in the order of maps (batch, height, width).

    Raises:
        InputError: There is no step to go through them in.
    """
    if steps < 1:
        raise InputError(f"deletion in {steps} steps is none: take at least 1")
    return _ranks(enlarge(maps, (images.shape[2], images.shape[3])), generator)


def _ranks(maps: Tensor, generator: torch.Generator) -> Tensor:
    """Return the place of every pixel, 0 for the most important (batch, height, width)."""
    flat = maps.flatten(1)
    shuffled = torch.rand(flat.shape, generator=generator).to(flat.device).argsort(dim=1)
    order = flat.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    # Where the order is read backwards, every pixel finds its place.
    return shuffled.gather(1, order).argsort(dim=1).view_as(maps)


def _blurred(images: Tensor) -> Tensor:
    places = torch.arange(_BLUR_WINDOW, dtype=images.dtype, device=images.device) - _BLUR_WINDOW // 2
    weights = torch.exp(-places.square() / (2 * _BLUR_SIGMA**2))
    weights = weights / weights.sum()
    half = _BLUR_WINDOW // 2
    single = images.flatten(0, 1).unsqueeze(1)
    padded = F.pad(single, (half, half, half, half), mode="replicate")
    rows = F.conv2d(padded, weights.view(1, 1, -1, 1))
    return F.conv2d(rows, weights.view(1, 1, 1, -1)).view_as(images)


@torch.no_grad()
def _probabilities(model: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor) -> Tensor:
    parts = [model(rows).float().softmax(dim=1) for (rows,) in split_rows(images)]
    return torch.cat(parts).gather(1, targets.unsqueeze(1)).squeeze(1)
