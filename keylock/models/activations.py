"""Smooth activations while gradients of gradients are needed, and the user's own activations afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["out_of_place_", "smooth_activations"]


@contextmanager
def smooth_activations(model: nn.Module, *, beta: float = 8.0) -> Iterator[nn.Module]:
    """Replace every ReLU by softplus(beta) inside the block, and put the ReLUs back after it.

    A ReLU network is piecewise linear: its second derivatives vanish, so that a loss on its input gradient cannot move
    the places where units switch. Softplus has them and comes close to ReLU for large `beta`.

    Args:
        model: Any model; nested ReLU modules are replaced, functional ones cannot be.
        beta: Sharpness; at 8 the two differ by at most ln(2) / 8 = .087.

    References:
        Dombrowski et al., "Explanations can be manipulated and geometry is to blame", NeurIPS 2019, section 3.
    """
    places = [
        (parent, name, child)
        for parent in model.modules()
        # Not named_children(), which leaves out a module's second name.
        for name, child in parent._modules.items()
        if isinstance(child, nn.ReLU)
    ]
    try:
        for parent, name, _ in places:
            setattr(parent, name, nn.Softplus(beta=beta))
        yield model
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)


def out_of_place_(model: nn.Module) -> nn.Module:
    """Make every activation of a model write to a new tensor, so that hooked outputs keep their values."""
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    return model
