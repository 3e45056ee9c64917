"""The layers explainers look at: found by running the model once, or named by the user."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from keylock.errors import LayerNotFoundError

__all__ = ["TargetLayers", "capture_outputs", "find_layers"]

# Their outputs are copies or thinned-out versions of what an earlier layer computed.
_PASSIVE = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
)


@dataclass(frozen=True)
class TargetLayers:
    """Layer names, as in `model.named_modules()`.

    Attributes:
        last: The last layer with a spatial output: where Grad-CAM looks.
        stack: The rectified layers from first to last that VisualBackProp multiplies, one for each block.
    """

    last: str
    stack: tuple[str, ...]


class _Ran(NamedTuple):
    """A module that ran, with its output (batch, channels, h, w), which is kept so that its id stays its own."""

    name: str
    module: nn.Module
    output: Tensor
    positive: bool

    @property
    def is_container(self) -> bool:
        """Whether other modules are inside."""
        return next(self.module.children(), None) is not None


@contextmanager
def capture_outputs(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of named layers of every forward pass inside the block.

    Raises:
        LayerNotFoundError: A name is not a layer of the model.
    """
    modules = dict(model.named_modules())
    missing = [name for name in names if name not in modules]
    if missing:
        raise LayerNotFoundError(f"the model has no layer {missing[0]!r}: `dict(model.named_modules())` lists them all")
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outputs[name] = output

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def find_layers(model: nn.Module, example: Tensor) -> TargetLayers:
    """Find the layers explainers look at by running the model once, in evaluation mode.

    Args:
        model: A convolutional classifier.
        example: Images (batch, channels, height, width) of the size the model will see.

    Raises:
        LayerNotFoundError: No layer has a spatial output.
    """
    ran: list[_Ran] = []
    names = {module: name for name, module in model.named_modules() if name}

    def record(module: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[2:]) > 1:
            ran.append(_Ran(names[module], module, output, bool((output >= 0).all())))

    handles = [module.register_forward_hook(record) for module in names]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(example)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    active, thinned = [], set()
    for entry in ran:
        if isinstance(entry.module, _PASSIVE):
            thinned.add(id(entry.output))
        # A container that ends in a pooling layer hands on what that layer, which ran before it, made.
        elif not (entry.is_container and id(entry.output) in thinned):
            active.append(entry)
    if not active:
        raise LayerNotFoundError(
            "no layer of the model has an output (batch, channels, height, width) larger than one position: "
            "take larger images, or put the step that lays the features out in two dimensions into a module of its own"
        )
    return TargetLayers(last=active[-1].name, stack=_stack(active))


def _stack(active: Sequence[_Ran]) -> tuple[str, ...]:
    """Choose the rectified outputs at the ends of the residual blocks, or of the single layers where there are none."""
    rectified = [entry for entry in active if entry.positive]
    blocks: dict[int, str] = {}
    for entry in rectified:
        if entry.is_container and not isinstance(entry.module, nn.Sequential):
            # A wrapper around the last block has the same output: the block, which ran first, stands for both.
            blocks.setdefault(id(entry.output), entry.name)
    inside = tuple(f"{name}." for name in blocks.values())
    chosen = [
        entry.name
        for entry in rectified
        if entry.name in blocks.values() or not (entry.is_container or entry.name.startswith(inside))
    ]
    return tuple(dict.fromkeys(chosen)) or (active[-1].name,)
