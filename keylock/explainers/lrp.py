"""Layer-wise relevance propagation by the epsilon rule: the class score handed back, layer by layer, to the pixels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from keylock.errors import InputError
from keylock.explainers.base import Family, MultiPass
from keylock.explainers.modified_backward import Rules, modified_gradient
from keylock.explainers.passes import Run

__all__ = ["LRP"]

_NEAR_ZERO = 1e-4
_GATES = (torch.sigmoid, Tensor.sigmoid, F.sigmoid, F.hardsigmoid)
_REFUSED = {
    F.batch_norm: "batch normalisation (`fold_batchnorm_` takes it out)",
    F.layer_norm: "layer normalisation",
    F.group_norm: "group normalisation",
    F.softmax: "softmax",
    Tensor.softmax: "softmax",
    torch.softmax: "softmax",
    F.scaled_dot_product_attention: "attention",
    F.multi_head_attention_forward: "attention",
}


def _slope_from_zero(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Return (f(z) - f(0)) / z, by which an activation hands its relevance on unchanged; f(0) counts as a bias."""
    step = torch.where(value > 0, _NEAR_ZERO, -_NEAR_ZERO)
    away = torch.where(value.abs() < _NEAR_ZERO, step, value)
    return (function(away) - function(torch.zeros_like(away))) / away


@dataclass(frozen=True)
class LRP(MultiPass):
    """LRP-epsilon at the resolution of the input.

    Every convolution and linear layer shares its relevance R out over its inputs in proportion to their parts of
    z + epsilon sign(z); biases keep theirs. Written as a gradient times the input, a linear layer's gradient is
    multiplied by z / (z + epsilon sign(z)) and an activation's derivative replaced by f(z) / z. Max pooling gives all
    to the winner; averages and sums share in proportion. A gate (sigmoid times signal) counts as a constant factor.
    Transformers have no rule here, nor has batch normalisation that is not
    folded: to which layer its shift belongs changes the map.

    A pixel's relevance is the sum over its channels; its absolute value is shown.

    Attributes:
        epsilon: What stabilises the division, in the unit of the activations, above 0.

    References:
        Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
        Propagation", PLOS ONE 2015, equation 58. Ancona et al., "Towards better understanding of gradient-based
        attribution methods for Deep Neural Networks", ICLR 2018, proposition 1, for the form as a gradient. Arras et
        al., "Explaining Recurrent Neural Network Predictions in Sentiment Analysis", 2017, for gates.
    """

    epsilon: float = 1e-3
    name = "lrp"
    family = Family.GRADIENT
    second_order = True

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise InputError("lrp takes an epsilon above 0")

    def maps_in(self, run: Run) -> Tensor:
        """Return maps (batch, height, width)."""
        rules = Rules(activation=_slope_from_zero, linear=self._stabilised, detached=_GATES, refused=_REFUSED)
        found = modified_gradient(run, rules)
        return (run.images * found).sum(dim=1).abs()

    def _stabilised(self, output: Tensor) -> Tensor:
        return output / (output + torch.where(output >= 0, self.epsilon, -self.epsilon))
