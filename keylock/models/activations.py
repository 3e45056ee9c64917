"""Smooth activations while gradients of gradients are needed, and the user's own activations afterwards.

Piecewise linear activations have a kink and no second derivative beside it. Each has a smooth stand-in here, in which
max(x, 0) is softplus. GELU, SiLU, Softplus, Sigmoid and Tanh are smooth already, and ELU has second derivatives on
one side; they stay.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["smooth_activations"]


class _Smooth(nn.Module):
    """An activation module written with softplus in place of max(x, 0).

    The module it stands for is kept inside, so that a trained slope goes on being trained.
    """

    def __init__(self, original: nn.Module, function: "_Formula", beta: float) -> None:
        super().__init__()
        self.original, self.function, self.beta = original, function, beta

    def forward(self, input: Tensor) -> Tensor:
        """Map a tensor to one of the same shape; the tensor itself, where the original works in place."""
        in_place = getattr(self.original, "inplace", False) is True
        # What is overwritten must not be what the way back reads.
        given = input.clone() if in_place else input
        values = self.function(self.original, given, lambda rectified: F.softplus(rectified, beta=self.beta))
        return input.copy_(values) if in_place else values


_Rectify = Callable[[Tensor], Tensor]
_Formula = Callable[[nn.Module, Tensor, _Rectify], Tensor]


def _relu(_module: nn.Module, input: Tensor, rectify: _Rectify) -> Tensor:
    return rectify(input)


def _clamped(input: Tensor, low: float, high: float, rectify: _Rectify) -> Tensor:
    """Clamp between two values: low + max(x - low, 0) - max(x - high, 0)."""
    return low + rectify(input - low) - rectify(input - high)


def _hardtanh(module: nn.Module, input: Tensor, rectify: _Rectify) -> Tensor:
    bounds = cast(nn.Hardtanh, module)
    return _clamped(input, bounds.min_val, bounds.max_val, rectify)


def _hardsigmoid(_module: nn.Module, input: Tensor, rectify: _Rectify) -> Tensor:
    return _clamped(input + 3, 0, 6, rectify) / 6


def _hardswish(_module: nn.Module, input: Tensor, rectify: _Rectify) -> Tensor:
    return input * _clamped(input + 3, 0, 6, rectify) / 6


def _leaky(input: Tensor, slope: Tensor | float, rectify: _Rectify) -> Tensor:
    """Return slope * x + (1 - slope) * max(x, 0)."""
    return slope * input + (1 - slope) * rectify(input)


def _leaky_relu(module: nn.Module, input: Tensor, rectify: _Rectify) -> Tensor:
    return _leaky(input, cast(nn.LeakyReLU, module).negative_slope, rectify)


def _rrelu(module: nn.Module, input: Tensor, rectify: _Rectify) -> Tensor:
    slopes = cast(nn.RReLU, module)
    return _leaky(input, (slopes.lower + slopes.upper) / 2, rectify)


def _prelu(module: nn.Module, input: Tensor, rectify: _Rectify) -> Tensor:
    return _leaky(input, cast(nn.PReLU, module).weight.view(-1, *(1,) * (input.dim() - 2)), rectify)


_FORMULAS: dict[type[nn.Module], _Formula] = {
    nn.ReLU: _relu,
    nn.ReLU6: _hardtanh,
    nn.Hardtanh: _hardtanh,
    nn.Hardsigmoid: _hardsigmoid,
    nn.Hardswish: _hardswish,
    nn.LeakyReLU: _leaky_relu,
    nn.PReLU: _prelu,
    nn.RReLU: _rrelu,
}


@contextmanager
def smooth_activations(model: nn.Module, *, beta: float = 8.0) -> Iterator[nn.Module]:
    """Replace every activation with a kink by a smooth one inside the block, and put the old ones back after it.

    A ReLU network is piecewise linear: its second derivatives vanish, so that a loss on its input gradient cannot move
    the places where units switch. With softplus(beta) in place of max(x, 0) it has them, and stays close to what it
    was for large `beta`. Replaced are ReLU, ReLU6, Hardtanh, Hardsigmoid, Hardswish, LeakyReLU, PReLU and RReLU.

    Args:
        model: Any model; nested modules are replaced, functional activations cannot be.
        beta: Sharpness; at 8 ReLU and its stand-in differ by at most ln(2) / 8 = .087.

    References:
        Dombrowski et al., "Explanations can be manipulated and geometry is to blame", NeurIPS 2019, section 3.
    """
    places = [
        (parent, name, child)
        for parent in model.modules()
        # Not named_children(), which leaves out a module's second name.
        for name, child in parent._modules.items()
        if child is not None and type(child) in _FORMULAS
    ]
    try:
        for parent, name, child in places:
            setattr(parent, name, _Smooth(child, _FORMULAS[type(child)], beta))
        yield model
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)
