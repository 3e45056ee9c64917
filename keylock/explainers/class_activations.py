"""Class activation maps of many classes at once: where the evidence for each class lies.

A lock is trained with them. They are no explainer to offer: values have signs, and there is a map for each class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from keylock.explainers.grad_cam import AtLayer
from keylock.explainers.passes import Pass

__all__ = ["ClassActivations"]


@dataclass(frozen=True)
class ClassActivations(AtLayer):
    """Class activation maps of several classes at one layer, at that layer's resolution.

    The evidence for a class at a position is what the features there add to its logit, by the gradient of the logit:
    features times gradient, summed over channels. Where the head is a mean over positions and a linear layer, or a 1x1
    convolution and a mean, this is the answer of the head to each position, exactly, up to its bias.

    Attributes:
        classes: Their indices.

    References:
        Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, equation 2; for other heads by
        the gradient, as Selvaraju et al., "Grad-CAM", ICCV 2017, but position by position.
    """

    classes: tuple[int, ...]
    name = "class_activations"

    def maps(self, recorded: Pass) -> Tensor:
        """Return the evidence (batch, classes, h, w) at the resolution of the layer, of either sign."""
        pairs = [recorded.at(self.layer, recorded.logits[:, label]) for label in self.classes]
        return torch.stack([(features * gradient).sum(dim=1) for features, gradient in pairs], dim=1)
