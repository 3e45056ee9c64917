"""LayerCAM: features weighted place by place by how much they raise the class score."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from keylock.explainers.grad_cam import AtLayer
from keylock.explainers.passes import Pass

__all__ = ["LayerCAM"]


@dataclass(frozen=True)
class LayerCAM(AtLayer):
    """LayerCAM at one layer, at that layer's resolution; it is sharp at early layers too.

    References:
        Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE TIP 2021,
        equations 4 to 6.
    """

    name = "layer_cam"

    def maps(self, recorded: Pass) -> Tensor:
        """Return maps (batch, h, w) at the resolution of the layer."""
        features, gradient = recorded.at(self.layer)
        return F.relu((F.relu(gradient) * features).sum(dim=1))
