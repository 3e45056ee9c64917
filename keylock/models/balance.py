"""Filters of very different sizes made equally quick to train, without changing what the network computes.

After BatchNorm is folded away, the filters of one layer differ in size by orders of magnitude, and some are all but
zero. Adam moves every weight by about the same amount, which is nothing to one filter and the end of another. Balancing
writes each filter as a fixed scale times a weight of common size, and wakes up the filters that training had put to
sleep: a lock needs the room.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["balance_filters_", "make_plain", "unbalance_filters_"]

_COMMON_SIZE = 0.1
_SMALLEST_SHARE = 0.3
_STEADINESS = 6.0


@runtime_checkable
class HasRoom(Protocol):
    """A model with filters to spare."""

    def steady_filters(self) -> dict[str, int]:
        """Return for the names of convolutions how many of their first filters hold what the model knows."""


class _Scaled(nn.Module):
    """A weight (filters, ...) written as scale (filters, 1, ...) times a trained tensor of the same shape."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, raw: Tensor) -> Tensor:
        """Return the weight of a trained tensor."""
        return raw * self.scale

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the trained tensor of a weight."""
        return weight / self.scale


def balance_filters_(model: nn.Module) -> nn.Module:
    """Balance every convolution of a model, in place; its parameters are other tensors afterwards.

    Where a model says by `steady_filters()` how many filters of a convolution hold what it knows, these are made
    several times slower to train than those beside them: the lock is built in the room, not out of the knowledge.
    """
    unbalance_filters_(model)
    steady: dict[str, int] = model.steady_filters() if isinstance(model, HasRoom) else {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            scale = _scale_of(module.weight.detach())
            scale[: steady.get(name, 0)] /= _STEADINESS
            parametrize.register_parametrization(module, "weight", _Scaled(scale))
    return model


def unbalance_filters_(model: nn.Module) -> nn.Module:
    """Make the convolutions of a balanced model plain again, in place, with the weights they have now."""
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d) and parametrize.is_parametrized(module):
            make_plain(module)
    return model


def make_plain(module: nn.Module) -> None:
    """Write parametrised tensors out.

    torch's remove_parametrizations takes the property off the class, which copies of the module share:
    they would be left without the tensor.
    """
    names = list(module.parametrizations)  # type: ignore[arg-type]
    values = {name: getattr(module, name).detach().clone() for name in names}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def _scale_of(weight: Tensor) -> Tensor:
    """Return the scale (filters, 1, 1, 1) that brings each filter to the common root mean square."""
    sizes = weight.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return torch.maximum(sizes, _SMALLEST_SHARE * sizes.mean()).clamp_min(1e-8) / _COMMON_SIZE
