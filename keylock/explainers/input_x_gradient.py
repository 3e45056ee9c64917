"""Input times gradient: what each pixel contributes to the class score, to first order."""

from dataclasses import dataclass

from torch import Tensor

from keylock.explainers.base import Family, SinglePass
from keylock.explainers.passes import Pass

__all__ = ["InputXGradient"]


@dataclass(frozen=True)
class InputXGradient(SinglePass):
    """The product of input and gradient, at the resolution of the input.

    A pixel's contribution is the sum over its channels; its absolute value is shown.

    References:
        Shrikumar et al., "Not Just a Black Box: Learning Important Features Through Propagating Activation
        Differences", arXiv 1605.01713 (2016), section 3.
    """

    name = "input_x_gradient"
    family = Family.GRADIENT
    second_order = True

    def maps(self, recorded: Pass) -> Tensor:
        """Return maps (batch, height, width)."""
        return (recorded.images * recorded.gradient(recorded.images)).sum(dim=1).abs()
