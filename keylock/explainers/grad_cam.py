"""Grad-CAM: the last feature maps, weighted by how much each one raises the class score."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from keylock.explainers.base import Explainer, Pass

__all__ = ["GradCAM"]


@dataclass(frozen=True)
class GradCAM(Explainer):
    """Grad-CAM at one layer, at that layer's resolution.

    Attributes:
        layer: Name of a layer with output (batch, channels, h, w).

    References:
        Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
        section 3, equations 1 and 2.
    """

    layer: str
    name = "grad_cam"

    @property
    def layers(self) -> tuple[str, ...]:
        """The one layer it looks at."""
        return (self.layer,)

    @property
    def parameters(self) -> dict[str, Any]:
        """What it was made with."""
        return asdict(self)

    def maps(self, recorded: Pass) -> Tensor:
        """Return maps (batch, h, w) at the resolution of the layer."""
        features = recorded.outputs[self.layer]
        weights = recorded.gradient(features).mean(dim=(2, 3), keepdim=True)
        return F.relu((weights * features).sum(dim=1))
