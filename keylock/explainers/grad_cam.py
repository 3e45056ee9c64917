"""Grad-CAM: the last feature maps, weighted by how much each one raises the class score."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.explainers.base import Explained, target_scores
from keylock.models import capture_outputs

__all__ = ["GradCAM"]


@dataclass(frozen=True)
class GradCAM:
    """Grad-CAM at one layer, at that layer's resolution.

    Attributes:
        layer: Name of a layer with output (batch, channels, h, w).

    References:
        Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
        section 3, equations 1 and 2.
    """

    layer: str
    name = "grad_cam"
    second_order = False

    @property
    def parameters(self) -> dict[str, Any]:
        """What it was made with."""
        return asdict(self)

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor, *, create_graph: bool = False) -> Explained:
        """Return maps (batch, h, w) at the resolution of the layer; see `Explainer.explain`."""
        with torch.enable_grad(), capture_outputs(model, [self.layer]) as outputs:
            # Where no parameter asks for a gradient, the images must, or there is no graph to differentiate.
            logits = model(images if _trains(model) else images.detach().requires_grad_())
            features = outputs[self.layer]
            (gradient,) = torch.autograd.grad(target_scores(logits, targets).sum(), features, create_graph=create_graph)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        maps = F.relu((weights * features).sum(dim=1))
        return Explained(logits, maps) if create_graph else Explained(logits.detach(), maps.detach())


def _trains(model: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in model.parameters())
