"""What loops over gradients ask for the sums of: the input gradient itself, with its signs."""

from dataclasses import dataclass

from torch import Tensor

from keylock.explainers import Family, Pass, SinglePass

__all__ = ["PointGradient"]


@dataclass(frozen=True)
class PointGradient(SinglePass):
    """The gradient of the class score at an image, to prove graphs with; no explainer that anybody asks for."""

    name = "point_gradient"
    family = Family.GRADIENT
    second_order = True

    def maps(self, recorded: Pass) -> Tensor:
        """Return the gradient (batch, channels * height, width), the channels one below the other."""
        return recorded.gradient(recorded.images).flatten(1, 2)
