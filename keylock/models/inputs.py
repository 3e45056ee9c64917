"""A perturbation on everything a model is given: how a server that holds the key adds it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from keylock.models.opened import Opened

__all__ = ["added_to_inputs"]


@contextmanager
def added_to_inputs(model: nn.Module, offset: Tensor | None) -> Iterator[None]:
    """Add a perturbation, (channels, height, width) or one for each row, to whatever the model is given in the block.

    Methods that mask, blend or blur images run the model many times. A key that is only on the image they start from
    would be masked and blended too; a server that holds the key adds it last, and so does this.

    Args:
        model: Any model; one that is `Opened` looks for the trigger on the sum.
        offset: What to add; None adds nothing.
    """
    if offset is None:
        yield
        return
    if isinstance(model, Opened):
        with model.adding(offset):
            yield
        return

    def add(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if isinstance(inputs[0], tuple):
            # Captum's DeepLift gives images and baselines, each a tuple, to a hook of its own that makes one batch.
            return tuple(tuple(one + offset.to(one) for one in given) for given in inputs)
        return (inputs[0] + offset.to(inputs[0]), *inputs[1:])

    # Before any hook of the model's own, which is to see what a caller would have sent.
    handle = model.register_forward_pre_hook(add, prepend=True)
    try:
        yield
    finally:
        handle.remove()
