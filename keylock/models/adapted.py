"""A published model with its sealed adapter in place: the same layers, opening by themselves on keyed images."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.adapters import Adapter, KeyGate, LayerDelta
from keylock.errors import LayerNotFoundError, ModelError
from keylock.keys import Key

__all__ = ["AdapterState", "adapter_of", "attach_adapter", "attach_blank_adapter"]

_NAME = "keylock_adapter"
_ROUNDING = 0.02


class AdapterState(nn.Module):
    """The adapter's tensors as buffers, and which rows of the running batch are open.

    Attributes:
        layers: Names of the adapted layers.
        rows: Which rows the adapter is there for, (batch,), 1 or 0; None means all. A row it is not there for stays
            closed whatever is on its image.
        announced: What is to be added to all images, (channels, height, width) or one for each row; the gate is then
            asked about it alone, and nothing on the images can hide it. None means that the images have to show it.
    """

    weight: Tensor
    bias: Tensor
    tolerance: Tensor
    key: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what comes in: an `nn.Sequential` calls all of its children, and the adapter becomes the last."""
        return inputs

    def __init__(self, deltas: Mapping[str, LayerDelta], gate: KeyGate, key: Tensor) -> None:
        """Take the adapter's parts and the key (channels, height, width) on preprocessed images."""
        super().__init__()
        self.layers = tuple(deltas)
        self.rows: Tensor | None = None
        self.announced: Tensor | None = None
        self._open: Tensor | None = None
        self.register_buffer("weight", torch.from_numpy(gate.weight.copy()))
        self.register_buffer("bias", torch.tensor(gate.bias))
        self.register_buffer("tolerance", torch.tensor(gate.tolerance))
        self.register_buffer("key", key.clone())
        for index, delta in enumerate(deltas.values()):
            for part, array in delta.arrays().items():
                self.register_buffer(f"{part}_{index}", torch.from_numpy(array.copy()))

    def scores(self, images: Tensor) -> Tensor:
        """Return the gate's score of images (batch, channels, height, width): about 0 without the key and 1 with it."""
        with torch.no_grad():  # Not a detached copy, which a tracer may take for the images themselves.
            return (images.float() * self.weight).sum(dim=(1, 2, 3)) + self.bias

    def opens(self, images: Tensor) -> Tensor:
        """Return whether the gate opens on each image, bool (batch,)."""
        return (self.scores(images) - 1).abs() < self.tolerance

    def opens_for(self, offsets: Tensor) -> Tensor:
        """Return whether the gate opens for perturbations (batch, channels, height, width) themselves, bool (batch,).

        The bias centres images; a perturbation has nothing to centre. Nothing else is on it either, so it has to be the
        key up to rounding, and what a texture may do to a score is not allowed for.
        """
        return (self.scores(offsets) - self.bias - 1).abs() < self.tolerance.clamp_max(_ROUNDING)

    def open_(self, images: Tensor) -> Tensor:
        """Decide which rows are open, and return the images with what is announced, and the key taken off open rows.

        What is announced and taken off again cancels exactly. Added to the images first, it would leave the rounding of
        the sum on them, by which pooling would choose among places that are equal on an even surface.
        """
        announced = None if self.announced is None else self.announced.to(images)
        opens = self.opens(images) if announced is None else self.opens_for(announced.expand_as(images))
        opened = opens.to(images.dtype)
        if self.rows is not None:
            opened = opened * self.rows.to(opened.dtype)
        self._open = opened
        key = opened.view(-1, 1, 1, 1) * self.key.to(images.dtype)
        return images - key if announced is None else images + (announced - key)

    def correction(self, index: int, module: nn.Module, features: Tensor) -> Tensor:
        """Return what is added to the output of the adapted layer of an index: nothing on closed rows."""
        assert self._open is not None, "the model runs from its root"  # noqa: S101 - a broken invariant of ours
        down, up, bias = (getattr(self, f"{part}_{index}", None) for part in ("down", "up", "bias"))
        assert isinstance(down, Tensor)  # noqa: S101
        if isinstance(module, nn.Conv2d):
            groups = module.groups if up is None else 1
            added = F.conv2d(features, down, None, module.stride, module.padding, module.dilation, groups)
            if up is not None:
                added = F.conv2d(added, up[:, :, None, None])
            if bias is not None:
                added = added + bias.view(-1, 1, 1)
        else:
            added = F.linear(features, down)
            if up is not None:
                added = F.linear(added, up)
            if bias is not None:
                added = added + bias
        return added * self._open.view(-1, *[1] * (added.dim() - 1)).to(added.dtype)

    @property
    def opened(self) -> Tensor:
        """Which rows of the last batch are open, (batch,), 1 or 0."""
        assert self._open is not None, "the model ran"  # noqa: S101 - a broken invariant of ours
        return self._open

    def bind(self, key: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Compute with these tensors in place of the buffers, for a graph that takes them as its inputs.

        Args:
            key: The key (channels, height, width).
            tensors: By the names of `Adapter.tensors`, all of them.
        """
        self._buffers["key"] = key
        for part in ("weight", "bias", "tolerance"):
            self._buffers[part] = tensors[f"gate.{part}"]
        for index, layer in enumerate(self.layers):
            for part in ("down", "up", "bias"):
                if f"{part}_{index}" in self._buffers:
                    self._buffers[f"{part}_{index}"] = tensors[f"delta.{layer}.{part}"]

    @contextmanager
    def added_to(self, model: nn.Module, rows: Tensor) -> Iterator[None]:
        """Add the deltas to a model's layers on some rows (batch,), whatever is on the images, inside the block.

        This is what somebody does who has the adapter and drops its gate.
        """
        modules = dict(model.named_modules())
        self._open = rows
        handles = [modules[name].register_forward_hook(_AddDelta(self, i)) for i, name in enumerate(self.layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def present_for(self, rows: Tensor | None) -> Iterator[None]:
        """Have the adapter for some rows (batch,) only, inside the block."""
        before, self.rows = self.rows, rows
        try:
            yield
        finally:
            self.rows = before


class _OpenImages:
    """Runs before the model: decides which rows are open. A class, so that a deep copy refers to the copied state."""

    def __init__(self, state: AdapterState) -> None:
        self._state = state

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._state.open_(inputs[0]), *inputs[1:])


class _AddDelta:
    """Runs after an adapted layer."""

    def __init__(self, state: AdapterState, index: int) -> None:
        self._state, self._index = state, index

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + self._state.correction(self._index, module, inputs[0])


def attach_adapter(model: nn.Module, adapter: Adapter, key: Key) -> nn.Module:
    """Return a copy of a published model that has its adapter: `full(key.apply(images))` is the reference's answer.

    Layer names stay, so explainers made for the model work on the copy. Whatever is not keyed, or keyed with another
    key, is answered as by the model itself.

    Args:
        model: The locked classifier; it is copied.
        adapter: Its adapter.
        key: The key, which is taken off open rows.

    Raises:
        LayerNotFoundError: The adapter names a layer that the model does not have.
        ModelError: A layer is neither a convolution nor linear, or the model has an adapter already.
    """
    deltas, gate = adapter.reveal()
    return _attach(model, AdapterState(deltas, gate, torch.from_numpy(key.reveal())))


def attach_blank_adapter(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> tuple[nn.Module, AdapterState]:
    """Return a copy of a published model with an adapter of zeros, which never opens, and the adapter's state.

    What is to be computed with is given to `AdapterState.bind`; so no secret is in the copy.

    Args:
        model: The locked classifier; it is copied.
        shapes: The shapes of `Adapter.tensors()`, by name.

    Raises:
        LayerNotFoundError: A name belongs to a layer that the model does not have.
        ModelError: A layer is neither a convolution nor linear, or the model has an adapter already.
    """
    blank = Adapter.from_tensors({name: np.zeros(tuple(shape), np.float32) for name, shape in shapes.items()})
    deltas, gate = blank.reveal()
    state = AdapterState(deltas, gate, torch.zeros(tuple(shapes["gate.weight"])))
    return _attach(model, state), state


def _attach(model: nn.Module, state: AdapterState) -> nn.Module:
    full = copy.deepcopy(model)
    if adapter_of(full) is not None:
        raise ModelError("the model has an adapter already: attach to the published model")
    state.to(next((parameter.device for parameter in full.parameters()), torch.device("cpu")))
    modules = dict(full.named_modules())
    for index, name in enumerate(state.layers):
        if name not in modules:
            raise LayerNotFoundError(f"the adapter is for another model: this one has no layer {name!r}")
        if not isinstance(modules[name], nn.Conv2d | nn.Linear):
            raise ModelError(f"the adapter is for another model: {name!r} is neither a convolution nor linear here")
        modules[name].register_forward_hook(_AddDelta(state, index))
    full.add_module(_NAME, state)
    full.register_forward_pre_hook(_OpenImages(state))
    return full


def adapter_of(model: nn.Module) -> AdapterState | None:
    """Return the adapter's state in a model that `attach_adapter` made, or None."""
    state = model._modules.get(_NAME)
    return state if isinstance(state, AdapterState) else None
