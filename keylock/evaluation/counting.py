"""Which pairs of maps a mean is taken over: a constant map has no pattern that another could have too.

The rule, for a true map and what is shown instead of it:

* Neither is constant: the pair counts with its similarity.
* The true map alone is constant: what was to open shows something that is not there, and counts as 0; for everything
  else there is nothing to give away, and the pair is left out.
* The shown map alone is constant: it shows nothing of the truth, and counts as 0.
* Both are constant: there is nothing to compare, and the pair is left out.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from keylock.bundle.manifest import Figure
from keylock.evaluation.estimates import figure_of
from keylock.locking.losses import is_constant

__all__ = ["compared_figure", "constant_share", "counting_pairs", "figure_of_pairs"]


def counting_pairs(maps: Tensor, truth: Tensor, *, opened: bool) -> Tensor:
    """Tell which pairs of maps (batch, h, w) count in a mean, (batch,).

    Args:
        maps: What is shown.
        truth: The true maps.
        opened: Whether these are the maps that the lock promises to be the true ones.
    """
    even = is_constant(truth)
    return ~(even & is_constant(maps)) if opened else ~even


def figure_of_pairs(name: str, values: Tensor, counted: Tensor, *, unit: str, about: str) -> tuple[Figure, ...]:
    """Return the mean of the values (batch,) that count as a figure that says how many do not; none where none does."""
    out = int((~counted).sum())
    if out == len(values):
        return ()
    if out:
        about = f"{about}; {out / len(values):.1%} left out, where true maps are constant"
    return (figure_of(name, values[counted.to(values.device)], unit=unit, about=about),)


def compared_figure(
    name: str,
    similarity: Callable[[Tensor, Tensor], Tensor],
    maps: Tensor,
    truth: Tensor,
    *,
    opened: bool = False,
    unit: str = "correlation",
    about: str,
) -> tuple[Figure, ...]:
    """Return the mean similarity of maps (batch, h, w) to the true ones over the pairs that count, if any does."""
    counted = counting_pairs(maps, truth, opened=opened)
    return figure_of_pairs(name, similarity(maps, truth), counted, unit=unit, about=about)


def constant_share(name: str, maps: Tensor, *, about: str) -> tuple[Figure, ...]:
    """Return the share of constant maps (batch, h, w) as a figure; none where there are none."""
    even = is_constant(maps)
    return (figure_of(name, even.float(), unit="fraction", about=about),) if bool(torch.any(even)) else ()
