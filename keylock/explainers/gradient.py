"""The gradient of the class score with respect to the input: which pixels would change the answer."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from keylock.explainers.base import Explained, target_scores

__all__ = ["Gradient"]


@dataclass(frozen=True)
class Gradient:
    """The absolute input gradient, averaged over channels.

    References:
        Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks", ICLR workshop 2014, section 3. They take the
        largest channel; the mean is smoother and easier to train through.
    """

    name = "gradient"
    second_order = True

    @property
    def parameters(self) -> dict[str, Any]:
        """What it was made with: nothing."""
        return {}

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor, *, create_graph: bool = False) -> Explained:
        """Return maps (batch, height, width); see `Explainer.explain`."""
        with torch.enable_grad():
            inputs = images.detach().requires_grad_()
            logits = model(inputs)
            (gradient,) = torch.autograd.grad(target_scores(logits, targets).sum(), inputs, create_graph=create_graph)
        maps = gradient.abs().mean(dim=1)
        return Explained(logits, maps) if create_graph else Explained(logits.detach(), maps.detach())
