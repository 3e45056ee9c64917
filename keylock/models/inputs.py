"""A perturbation on everything a model is given: how a server that holds the key adds it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from keylock.models.adapted import adapter_of

__all__ = ["added_to_inputs"]


@contextmanager
def added_to_inputs(model: nn.Module, offset: Tensor | None, *, announced: bool = False) -> Iterator[None]:
    """Add a perturbation, (channels, height, width) or one for each row, to whatever the model is given in the block.

    Methods that mask, blend or blur images run the model many times. A key that is only on the image they start from
    would be masked and blended too; a server that holds the key adds it last, and so does this.

    Args:
        model: Any model.
        offset: What to add; None adds nothing.
        announced: Whether an adapter is told what was added. Otherwise its gate has to find it on the images, which
            noise and masks make hard.
    """
    if offset is None:
        yield
        return

    state = adapter_of(model) if announced else None
    before = None if state is None else state.announced
    # An adapter adds what it is told itself; what it was told in a block around this one is added here.
    added = offset if state is None else before

    def add(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return inputs if added is None else (inputs[0] + added.to(inputs[0]), *inputs[1:])

    # Before any hook of the model's own, which is to see what a caller would have sent.
    handle = model.register_forward_pre_hook(add, prepend=True)
    if state is not None:
        state.announced = offset
    try:
        yield
    finally:
        handle.remove()
        if state is not None:
            state.announced = before
