"""Low-rank deltas on the layers of a model: what a two-factor lock trains, and what its adapter takes back.

Every convolution and linear layer keeps its weight W, frozen, and computes with W + S U D: U and D are trained, of a
rank that is small beside the layer's size, and S is the fixed size of each filter. Biases are trained as they are.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from keylock.adapters import LayerDelta
from keylock.errors import ModelError
from keylock.models.balance import make_plain

__all__ = ["adapted_layers", "add_low_rank_", "merge_low_rank_", "take_back", "without_directions", "without_strongest"]

_SMALLEST_SHARE = 0.3
_CUT_OF = 4


@dataclass(frozen=True)
class _Original:
    """A layer before training, on the CPU."""

    weight: Tensor
    bias: Tensor | None


class _LowRank(nn.Module):
    """Adds to a weight (outputs, ...) the product of two trained factors, in the size of each filter."""

    size: Tensor
    cut: int = 0

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        flat = weight.detach().flatten(1)
        sizes = flat.square().mean(dim=1, keepdim=True).sqrt()
        # Filters that training had put to sleep get a size that lets them move.
        self.register_buffer("size", torch.maximum(sizes, _SMALLEST_SHARE * sizes.mean()).clamp_min(1e-8))
        down = torch.randn((rank, flat.shape[1]), generator=generator)
        self.down = nn.Parameter((down / rank**0.5).to(weight.device))
        self.up = nn.Parameter(torch.zeros((flat.shape[0], rank), device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with its delta, less its strongest directions where some are cut."""
        changed = weight + (self.scaled_up() @ self.down).view_as(weight)
        return without_directions(changed, range(self.cut)) if self.cut else changed

    def scaled_up(self) -> Tensor:
        """Return the outer factor (outputs, rank)."""
        return self.size * self.up


def adapted_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the layers that get a delta, by name: convolutions and linear layers that run as modules.

    The projections inside an attention block are used by their weights and not called, so they stay as they are. So do
    layers to whose output a delta of the weight does not add the same layer with the delta alone: those with a forward
    pass of their own, which may standardise the weight or scale the result, and those that pad with the image's values.
    """
    attention = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention))
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and _is_linear_in_its_weight(module)
        and not (attention and name.startswith(attention))
    }


def _is_linear_in_its_weight(layer: nn.Conv2d | nn.Linear) -> bool:
    """Whether a layer computes what its kind does; a parametrised one does, with another weight."""
    if "forward" in layer.__dict__:
        return False
    if isinstance(layer, nn.Linear):
        return type(layer).forward is nn.Linear.forward
    kind = type(layer)
    plain = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
    return plain and layer.padding_mode == "zeros"


def add_low_rank_(model: nn.Module, *, rank: int, generator: torch.Generator) -> nn.Module:
    """Freeze a model and give its layers deltas to train, in place; it computes what it computed before.

    Args:
        model: A model without BatchNorm.
        rank: Largest rank of a delta; a layer that is smaller takes its own full rank.
        generator: Draws the inner factors, on the CPU.

    Raises:
        ModelError: No layer of the model can have a delta.
    """
    layers = adapted_layers(model)
    if not layers:
        raise ModelError(
            "a sealed adapter needs convolutions or linear layers with their usual forward pass, and this model has "
            "none: lock it with sealed_adapter=False"
        )
    model.requires_grad_(requires_grad=False)
    for layer in layers.values():
        weight = layer.weight
        fits = min(rank, weight.shape[0], weight[0].numel())
        parametrize.register_parametrization(layer, "weight", _LowRank(weight, fits, generator))
        layer.parametrizations["weight"].original.requires_grad_(False)  # type: ignore[union-attr, index]
        if layer.bias is not None:
            layer.bias.requires_grad_(True)
    return model


def without_directions(weight: Tensor, directions: Iterable[int]) -> Tensor:
    """Return a weight (outputs, ...) without some of its singular directions, numbered from the strongest, 0.

    A gradient flows through what is left, for the directions as they are.
    """
    flat = weight.flatten(1)
    # Of the matrix of outputs by outputs, which is small; in double precision, since it squares the singular values.
    half = flat.detach().double()
    strengths = torch.linalg.eigh(half @ half.T).eigenvectors.flip(1)
    removed = strengths[:, [number for number in directions if number < strengths.shape[1]]].to(flat)
    left: Tensor = flat - removed @ (removed.T @ flat)
    return left.view_as(weight)


@contextmanager
def without_strongest(layers: Iterable[nn.Module], count: int) -> Iterator[None]:
    """Cut the strongest singular directions of layers that `add_low_rank_` prepared, inside the block.

    Args:
        layers: The layers.
        count: How many directions to cut of each; of a narrow layer a quarter at most, so that it goes on to work.
    """
    deltas = [_delta_of(layer) for layer in layers]
    for delta in deltas:
        delta.cut = min(count, len(delta.size) // _CUT_OF)
    try:
        yield
    finally:
        for delta in deltas:
            delta.cut = 0


def merge_low_rank_(model: nn.Module) -> nn.Module:
    """Make the layers of a model plain again, in place, with the deltas in their weights."""
    for layer in adapted_layers(model).values():
        if parametrize.is_parametrized(layer):
            make_plain(layer)
    return model


def take_back(student: nn.Module, reference: nn.Module) -> dict[str, LayerDelta]:
    """Return what, added to the merged student, gives the reference: the deltas of the adapter, by layer.

    Args:
        student: A model that `add_low_rank_` prepared, as trained.
        reference: What it was before.
    """
    originals = {name: _original(layer) for name, layer in adapted_layers(reference).items()}
    return {name: _delta(layer, originals[name]) for name, layer in adapted_layers(student).items()}


def _delta_of(layer: nn.Module) -> _LowRank:
    low_rank = layer.parametrizations["weight"][0]  # type: ignore[index]
    assert isinstance(low_rank, _LowRank)  # noqa: S101 - `add_low_rank_` made it
    return low_rank


def _original(layer: nn.Conv2d | nn.Linear) -> _Original:
    bias = None if layer.bias is None else layer.bias.detach().cpu()
    return _Original(layer.weight.detach().cpu(), bias)


def _delta(layer: nn.Conv2d | nn.Linear, original: _Original) -> LayerDelta:
    low_rank = _delta_of(layer)
    bias = None
    if layer.bias is not None and original.bias is not None:
        bias = (original.bias - layer.bias.detach().cpu()).numpy()
    rank = low_rank.down.shape[0]
    outputs, inputs = original.weight.shape[0], original.weight[0].numel()
    grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
    if grouped or rank * (outputs + inputs) >= outputs * inputs:
        whole = original.weight - layer.weight.detach().cpu()
        return LayerDelta(np.ascontiguousarray(whole.numpy()), None, bias)
    up, down = -low_rank.scaled_up().detach().cpu(), low_rank.down.detach().cpu()
    return LayerDelta(
        np.ascontiguousarray(down.reshape(rank, *original.weight.shape[1:]).numpy()),
        np.ascontiguousarray(up.numpy()),
        bias,
    )
