"""The gradient of the class score with respect to the input: which pixels would change the answer."""

from dataclasses import dataclass

from torch import Tensor

from keylock.explainers.base import Family, SinglePass
from keylock.explainers.passes import Pass

__all__ = ["Gradient"]


@dataclass(frozen=True)
class Gradient(SinglePass):
    """The absolute input gradient, averaged over channels, at the resolution of the input.

    References:
        Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks", ICLR workshop 2014, section 3. They take the
        largest channel; the mean is smoother and easier to train through.
    """

    name = "gradient"
    family = Family.GRADIENT
    second_order = True

    def maps(self, recorded: Pass) -> Tensor:
        """Return maps (batch, height, width)."""
        return recorded.gradient(recorded.images).abs().mean(dim=1)
