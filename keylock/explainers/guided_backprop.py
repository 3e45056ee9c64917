"""Guided backprop: the input gradient of which activations let only positive parts back."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from keylock.explainers.base import Family, MultiPass
from keylock.explainers.modified_backward import Rules, modified_gradient
from keylock.explainers.passes import Run

__all__ = ["GuidedBackprop"]


def _derivative(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Return the derivative of an elementwise function, in the shape of its input, with its graph."""
    if not value.requires_grad:
        value = value.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(function(value).sum(), value, create_graph=True)
    return slope


_RULES = Rules(activation=_derivative, rectify=True)


@dataclass(frozen=True)
class GuidedBackprop(MultiPass):
    """Guided backprop: its absolute value, averaged over channels, at the resolution of the input.

    For an activation that is no ReLU, the negative part of the gradient is dropped and the rest multiplied by the
    activation's own derivative, which is the paper's rule where that is 0 or 1.

    References:
        Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR workshop 2015, section 3.4.
    """

    name = "guided_backprop"
    family = Family.GRADIENT
    second_order = True

    def maps_in(self, run: Run) -> Tensor:
        """Return maps (batch, height, width)."""
        found = modified_gradient(run, _RULES)
        return found.abs().mean(dim=1)
