"""Grad-CAM++: Grad-CAM whose channel weights count every place that speaks for the class alike."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from keylock.explainers.grad_cam import AtLayer
from keylock.explainers.passes import Pass

__all__ = ["GradCAMPlusPlus"]


@dataclass(frozen=True)
class GradCAMPlusPlus(AtLayer):
    """Grad-CAM++ at one layer, at that layer's resolution.

    With the score exp(S) of the paper, the weight of a place is g^2 / (2 g^2 + sum(A) g^3) for the gradient g of S and
    the channel's sum over places sum(A), which is 1 / (2 + sum(A) g). The features of the paper are rectified, so that
    the sum is not negative; of features that are not, a negative product counts as zero.

    References:
        Chattopadhay et al., "Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks", WACV 2018,
        equations 5, 19 and 20.
    """

    name = "grad_cam_pp"

    def maps(self, recorded: Pass) -> Tensor:
        """Return maps (batch, h, w) at the resolution of the layer."""
        features, gradient = recorded.at(self.layer)
        shares = 1 / (2 + F.relu(features.sum(dim=(2, 3), keepdim=True) * gradient))
        weights = (shares * F.relu(gradient)).sum(dim=(2, 3), keepdim=True)
        return F.relu((weights * features).sum(dim=1))
