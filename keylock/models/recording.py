"""One run of a model, with what every module gave out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from keylock.errors import LayerNotFoundError
from keylock.models.kernels import plain_attention

__all__ = ["Ran", "capture_outputs", "evaluating", "record"]


class Ran(NamedTuple):
    """A module that ran; the tensors are kept so that their ids stay their own.

    Attributes:
        name: Its name in the model.
        module: Itself.
        input: The first thing it was called with, where that is a tensor.
        output: What it returned; a later module may have written to it.
        positive: Whether the output held no negative number when it was returned.
    """

    name: str
    module: nn.Module
    input: Tensor | None
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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model into evaluation mode inside the block, and every module back into its own mode after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield model
    finally:
        for module in training:
            module.training = True


def record(model: nn.Module, example: Tensor) -> list[Ran]:
    """Run a model once, in evaluation mode and without gradients, and list its modules in the order they ended.

    Modules that do not return a tensor are left out, and the model itself is too.
    """
    ran: list[Ran] = []
    names = {module: name for name, module in model.named_modules() if name}

    def keep(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if isinstance(output, Tensor):
            first = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            ran.append(Ran(names[module], module, first, output, bool((output >= 0).all())))

    handles = [module.register_forward_hook(keep) for module in names]
    try:
        with torch.no_grad(), plain_attention(), evaluating(model):
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return ran
