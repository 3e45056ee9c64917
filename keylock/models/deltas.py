"""Deltas on the layers of a model: what a lock trains, and what its sealed delta takes back.

Every convolution and linear layer keeps its weight W, frozen, and computes with W + S C: the change C is trained, by
itself or as a product U D of a rank that is small beside the layer's size, and S is the fixed size of each filter.
Biases are trained as they are.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from keylock.errors import ModelError
from keylock.models.balance import make_plain
from keylock.trigger.delta import Delta

__all__ = [
    "adapted_layers",
    "add_deltas_",
    "followed_directions_",
    "held_changes",
    "merge_deltas_",
    "shifted",
    "without_directions",
    "without_strongest",
]

_SMALLEST_SHARE = 0.3
_CUT_OF = 2
# The strongest directions of matrices with more rows than this are found by iteration, in a subspace of as many
# directions as this: more than are ever cut, which is what makes those that are cut exact.
_DECOMPOSED_WHOLE = 64
_FOLLOWED = 16
_ROUNDS = 2
# Entries of a factor move a weight by less than their own step; those of a whole change would move it by more.
_WHOLE_STEP = 3.0


class _Change(nn.Module):
    """Adds a trained change to a weight (outputs, ...), in the size of each filter; without a rank it is any change."""

    size: Tensor
    basis: Tensor | None
    cut: int = 0
    shift: Tensor | None = None
    holding: bool = False
    held: Tensor | None = None
    directions: Tensor | None = None
    next_basis: Tensor | None = None

    def __init__(self, weight: Tensor, rank: int | None, generator: torch.Generator) -> None:
        super().__init__()
        flat = weight.detach().flatten(1)
        sizes = flat.square().mean(dim=1, keepdim=True).sqrt()
        # Filters that training had put to sleep get a size that lets them move.
        self.register_buffer("size", torch.maximum(sizes, _SMALLEST_SHARE * sizes.mean()).clamp_min(1e-8))
        self.register_buffer("basis", _first_basis(flat) if len(flat) > _DECOMPOSED_WHOLE else None)
        if rank is None:
            self.whole = nn.Parameter(torch.zeros_like(flat))
            return
        down = torch.randn((rank, flat.shape[1]), generator=generator)
        self.down = nn.Parameter((down / rank**0.5).to(weight.device))
        self.up = nn.Parameter(torch.zeros((flat.shape[0], rank), device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with its change and shift, less its strongest directions where some are cut."""
        changed = self.held
        if changed is None:
            change, step = (self.whole, _WHOLE_STEP) if hasattr(self, "whole") else (self.up @ self.down, 1.0)
            changed = torch.addcmul(weight.flatten(1), self.size, change, value=step).view_as(weight)
            self.held = changed if self.holding else None
        if self.shift is not None:
            changed = changed + self.shift
        return _without(changed, self.strongest(changed, self.cut)) if self.cut else changed

    def strongest(self, changed: Tensor, count: int) -> Tensor:
        """Return the strongest left singular directions of the changed weight, one in each column (outputs, count)."""
        found = self.directions
        if found is None:
            matrix = changed.detach().flatten(1)
            if self.basis is None:
                found = _left_directions(matrix).to(matrix)
            elif self.shift is None:
                found, self.next_basis = _turned(matrix, self.basis)
            else:
                # A shift may have strong directions of its own.
                found, _ = _turned(matrix, _iterated(matrix, self.basis))
            if self.holding and self.shift is None:
                self.directions = found
        return found[:, :count]


def adapted_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the layers that get a delta, by name: convolutions and linear layers, run as modules or read by functions.

    The projections inside an attention block stay as they are: torch reads them in ways of its own.
    """
    attention = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention))
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not (attention and name.startswith(attention))
    }


def add_deltas_(model: nn.Module, *, rank: int | None, generator: torch.Generator) -> nn.Module:
    """Freeze a model and give its layers deltas to train, in place; it computes what it computed before.

    Args:
        model: A model without BatchNorm.
        rank: Largest rank of a delta; a layer that is smaller takes its own full rank. None for no bound.
        generator: Draws the inner factors, on the CPU.

    Raises:
        ModelError: No layer of the model can have a delta.
    """
    layers = adapted_layers(model)
    if not layers:
        raise ModelError(
            "a sealed delta needs convolutions or linear layers, and this model has none: lock it with "
            "trained_trigger=True"
        )
    model.requires_grad_(requires_grad=False)
    # Layers that share a parameter share its delta.
    deltas: dict[int, _Change] = {}
    for layer in layers.values():
        weight = layer.weight
        fits = None if rank is None else min(rank, weight.shape[0], weight[0].numel())
        delta = deltas.setdefault(id(weight), _Change(weight, fits, generator))
        parametrize.register_parametrization(layer, "weight", delta)
        layer.parametrizations["weight"].original.requires_grad_(False)  # type: ignore[union-attr, index]
        if layer.bias is not None:
            layer.bias.requires_grad_(True)
    return model


def without_directions(weight: Tensor, directions: Iterable[int]) -> Tensor:
    """Return a weight (outputs, ...) without some of its singular directions, numbered from the strongest, 0.

    A gradient flows through what is left, for the directions as they are.
    """
    strengths = _left_directions(weight.detach().flatten(1))
    return _without(weight, strengths[:, [number for number in directions if number < strengths.shape[1]]])


def _left_directions(matrix: Tensor) -> Tensor:
    """Return all left singular directions of a matrix, in double precision, the strongest first, one in each column."""
    # Of the matrix of rows by rows, which is small; in double precision, since it squares the singular values.
    half = matrix.double()
    directions: Tensor = torch.linalg.eigh(half @ half.T).eigenvectors.flip(1)
    return directions


def _first_basis(matrix: Tensor) -> Tensor:
    """Return where the directions of a matrix (rows, columns) are followed from, (rows, directions)."""
    drawn = torch.randn((len(matrix), _FOLLOWED), generator=torch.Generator().manual_seed(len(matrix)))
    return _iterated(matrix, torch.linalg.qr(drawn.to(matrix)).Q)


def _iterated(matrix: Tensor, basis: Tensor) -> Tensor:
    """Turn a subspace of the rows towards the strongest left singular directions of a matrix, by a few rounds."""
    for _ in range(_ROUNDS):
        _, basis = _turned(matrix, basis)
    return basis


def _turned(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Find the strongest left singular directions of a matrix (rows, columns) in a subspace, and a better subspace.

    One round of subspace iteration reads the matrix twice. In a training the matrix changes little from step to step,
    so that a subspace that is a round behind is good enough. Where two directions are nearly as strong as each other,
    either may be returned, or what lies between.

    Args:
        matrix: The matrix.
        basis: An orthonormal basis of the subspace (rows, directions).

    Returns:
        The directions (rows, directions), the strongest first, and an orthonormal basis of the next subspace.

    References:
        Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 53(2), 2011, algorithm 4.4.
    """
    with torch.autocast(matrix.device.type, enabled=False):
        shares = basis.T @ matrix
        turned = basis @ _left_directions(shares).to(matrix)
        return turned, torch.linalg.qr(matrix @ shares.T).Q


def _without(weight: Tensor, directions: Tensor) -> Tensor:
    """Return a weight (outputs, ...) less its share in orthonormal directions (outputs, count)."""
    flat = weight.flatten(1)
    left: Tensor = _Projection.apply(flat, directions.to(flat))
    return left.view_as(weight)


class _Projection(torch.autograd.Function):
    """Takes a matrix's share in orthonormal directions away, and the gradient's on the way back: in one pass each."""

    @staticmethod
    def forward(context: Any, matrix: Tensor, directions: Tensor) -> Tensor:  # noqa: ANN401 - torch has no type for it
        context.save_for_backward(directions)
        return _projected(matrix, directions)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (directions,) = context.saved_tensors
        # By the function itself, so that gradients of gradients are right as well.
        return _Projection.apply(gradients[0], directions), None


def _projected(matrix: Tensor, directions: Tensor) -> Tensor:
    with torch.autocast(matrix.device.type, enabled=False):
        return torch.addmm(matrix, directions, directions.T @ matrix, alpha=-1)


class _ProjectedRows(torch.autograd.Function):
    """Takes the share in orthonormal directions out of the last rows of a layer's answers, in place.

    For an answer W x + b it is as if these rows had met W less its share in the directions; b stays.
    """

    @staticmethod
    def forward(
        context: Any,  # noqa: ANN401
        answers: Tensor,
        bias: Tensor | None,
        directions: Tensor,
        last: int,
        channels: int,
    ) -> Tensor:
        context.mark_dirty(answers)
        context.save_for_backward(directions)
        context.last, context.channels = last, channels
        rows, chosen = answers[-last:].movedim(channels, -1), directions.to(answers.dtype)
        shares = rows @ chosen
        if bias is not None:
            shares = shares - bias.to(answers.dtype) @ chosen
        rows.sub_(shares @ chosen.T)
        return answers

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:  # noqa: ANN401
        (directions,) = context.saved_tensors
        of_bias = None
        if context.needs_input_grad[1]:
            rows = gradients[0][-context.last :].movedim(context.channels, -1)
            of_bias = directions @ (directions.T @ rows.flatten(0, -2).sum(dim=0).float())
        # By the function itself, so that gradients of gradients are right as well.
        left = _ProjectedRows.apply(gradients[0].clone(), None, directions, context.last, context.channels)
        return left, of_bias, None, None, None


@contextmanager
def held_changes(model: nn.Module) -> Iterator[None]:
    """Compute each changed weight of a model that `add_deltas_` prepared once inside the block, however often it runs.

    Parameters must stay as they are in the block, and there must be one way back for all of its passes.
    """
    deltas = [_delta_of(layer) for layer in adapted_layers(model).values()]
    for delta in deltas:
        delta.holding = True
    try:
        yield
    finally:
        for delta in deltas:
            delta.holding, delta.held, delta.directions = False, None, None


def followed_directions_(model: nn.Module) -> None:
    """Note, after a step of a training, where the strongest directions were: they are followed from there."""
    for layer in adapted_layers(model).values():
        delta = _delta_of(layer)
        if delta.next_basis is not None:
            delta.basis, delta.next_basis = delta.next_basis, None


@contextmanager
def without_strongest(layers: Iterable[nn.Module], count: int, *, last: int | None = None) -> Iterator[None]:
    """Cut the strongest singular directions of layers that `add_deltas_` prepared, inside the block.

    Args:
        layers: The layers.
        count: How many directions to cut of each; of a narrow layer half at most, so that it goes on to work.
        last: For how many rows at the end of every batch, which is for layers that are run as modules, on rows that
            are images; None for all rows, however the weights are read.
    """
    layers = list(layers)
    deltas = [_delta_of(layer) for layer in layers]
    counts = [min(count, len(delta.size) // _CUT_OF) for delta in deltas]
    handles = []
    try:
        if last is None:
            for delta, own in zip(deltas, counts, strict=True):
                delta.cut = own
        else:
            handles = [
                layer.register_forward_hook(_cutting(own, last))
                for layer, own in zip(layers, counts, strict=True)
                if own
            ]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for delta in deltas:
            delta.cut = 0


def _cutting(count: int, last: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Return a hook that cuts the strongest directions of a layer for the last rows of a batch."""

    def hook(layer: nn.Module, inputs: Any, answers: Tensor) -> Tensor:  # noqa: ANN401
        assert isinstance(layer, nn.Conv2d | nn.Linear)  # noqa: S101 - no other has a change
        weight = layer.weight
        directions = _delta_of(layer).strongest(weight, count)
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            # Directions mix filters that see other channels.
            rows = layer._conv_forward(inputs[0][-last:], _without(weight, directions), layer.bias)
            return torch.cat([answers[:-last], rows])
        channels = 1 if isinstance(layer, nn.Conv2d) else -1
        cut: Tensor = _ProjectedRows.apply(answers, layer.bias, directions, last, channels)
        return cut

    return hook


@contextmanager
def shifted(model: nn.Module, delta: Delta) -> Iterator[None]:
    """Add a delta to the weights of a model that `add_deltas_` prepared, inside the block.

    This is what somebody does who has the delta of an earlier lock and takes the new weights for it.
    """
    arrays = {name: torch.from_numpy(array) for name, array in delta.reveal().items()}
    added: list[_Change] = []
    replaced: list[tuple[nn.Module, str, nn.Parameter | None]] = []
    try:
        for name, array in arrays.items():
            place, _, entry = name.rpartition(".")
            layer = model.get_submodule(place)
            if entry == "weight" and parametrize.is_parametrized(layer, "weight"):
                change = _delta_of(layer)
                change.shift = array.to(change.size)
                added.append(change)
                continue
            own = layer._parameters.pop(entry)
            assert own is not None, "a delta names entries that are there"  # noqa: S101 - a broken invariant of ours
            replaced.append((layer, entry, own))
            setattr(layer, entry, own + array.to(own))
        yield
    finally:
        for change in added:
            change.shift = None
        for layer, entry, own in replaced:
            delattr(layer, entry)
            layer.register_parameter(entry, own)


def merge_deltas_(model: nn.Module) -> nn.Module:
    """Make the layers of a model plain again, in place, with the deltas in their weights."""
    for layer in adapted_layers(model).values():
        if parametrize.is_parametrized(layer):
            make_plain(layer)
    return model


def _delta_of(layer: nn.Module) -> _Change:
    change = layer.parametrizations["weight"][0]  # type: ignore[index]
    assert isinstance(change, _Change)  # noqa: S101 - `add_deltas_` made it
    return change
