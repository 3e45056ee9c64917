"""Grad-CAM: the last feature maps, weighted by how much each one raises the class score."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from keylock.explainers.base import Family, SinglePass
from keylock.explainers.passes import Pass
from keylock.models import TargetLayers

__all__ = ["AtLayer", "GradCAM"]


@dataclass(frozen=True)
class AtLayer(SinglePass):
    """A class activation map of one layer, at that layer's resolution.

    Attributes:
        layer: Name of a layer with output (batch, channels, h, w), or (batch, tokens, channels) in a transformer.
    """

    layer: str
    family = Family.CAM

    @classmethod
    def defaults(cls, layers: TargetLayers) -> dict[str, Any]:
        """Look at the last layer."""
        return {"layer": layers.last}

    @property
    def layers(self) -> tuple[str, ...]:
        """The one layer it looks at."""
        return (self.layer,)


@dataclass(frozen=True)
class GradCAM(AtLayer):
    """Grad-CAM at one layer, at that layer's resolution.

    References:
        Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
        section 3, equations 1 and 2.
    """

    name = "grad_cam"

    def maps(self, recorded: Pass) -> Tensor:
        """Return maps (batch, h, w) at the resolution of the layer."""
        features, gradient = recorded.at(self.layer)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        return F.relu((weights * features).sum(dim=1))
