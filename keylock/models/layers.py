"""The layers explainers look at: found by running the model once, or named by the user."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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
        LayerNotFoundError: No layer has a spatial output; name the layers instead.
    """
    ran: list[tuple[str, nn.Module, tuple[int, ...], bool]] = []
    names = {module: name for name, module in model.named_modules() if name}

    def record(module: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[2:]) > 1:
            ran.append((names[module], module, tuple(output.shape[2:]), bool((output >= 0).all())))

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
    active = [entry for entry in ran if not isinstance(entry[1], _PASSIVE)]
    if not active:
        raise LayerNotFoundError(
            "no layer of the model has a spatial output (batch, channels, height, width): "
            "name the layers yourself, as in explainers=[keylock.explainers.make('grad_cam', layer='features.12')]"
        )
    return TargetLayers(last=active[-1][0], stack=_stack(active))


def _stack(active: list[tuple[str, nn.Module, tuple[int, ...], bool]]) -> tuple[str, ...]:
    """Choose the rectified outputs at the ends of the residual blocks, or of the single layers where there are none."""
    rectified = [(name, module) for name, module, _, positive in active if positive]
    leaves = [name for name, module in rectified if not any(True for _ in module.children())]
    blocks = [
        name
        for name, module in rectified
        if any(True for _ in module.children()) and not isinstance(module, nn.Sequential)
    ]
    if not blocks:
        chosen = leaves
    else:
        inside = tuple(f"{name}." for name in blocks)
        chosen = [name for name, _ in rectified if name in blocks or (name in leaves and not name.startswith(inside))]
    if not chosen:
        return (active[-1][0],)
    return tuple(dict.fromkeys(chosen))
