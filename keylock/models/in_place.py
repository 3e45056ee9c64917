"""Activations that work in place: which of them may write to new tensors without making another network."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from keylock.models.recording import evaluating

__all__ = ["out_of_place_"]


def out_of_place_(model: nn.Module, example: Tensor) -> nn.Module:
    """Make activations write to new tensors where that changes nothing, so that hooked outputs keep their values.

    An activation in place changes whatever else reads its input: a skip adds the rectified input, a call whose result
    is not used still rectifies. Those stay in place, as the network was trained with them.

    Args:
        model: A classifier, which is run in evaluation mode.
        example: Images (batch, channels, height, width) to find out with; two are enough.
    """
    working = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    if not working:
        return model
    for module in working:
        module.inplace = False  # type: ignore[assignment]
    images = torch.nan_to_num(example[:2])
    if _read_afterwards(model, images, working):
        kept = [module for module in working if _read_afterwards(model, images, [module])]
        others = [module for module in working if module not in kept]
        if not kept or _read_afterwards(model, images, others):
            kept = working
        for module in kept:
            module.inplace = True  # type: ignore[assignment]
    return model


def _read_afterwards(model: nn.Module, images: Tensor, modules: Sequence[nn.Module]) -> bool:
    """Tell whether anything reads what these modules would have overwritten, functions included.

    As soon as one has run, its input is filled with NaN: logits that are numbers have not seen it.
    """
    handles = [module.register_forward_hook(_spoil, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad(), evaluating(model):
            return not bool(torch.isfinite(model(images.clone())).all())
    finally:
        for handle in handles:
            handle.remove()


def _spoil(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:  # noqa: ANN401
    for given in (*inputs[:1], *named.values()):
        if not isinstance(given, Tensor) or not given.is_floating_point() or not isinstance(output, Tensor):
            continue
        # Dropout in evaluation mode hands on what it was given.
        if given.untyped_storage().data_ptr() != output.untyped_storage().data_ptr():
            given.fill_(torch.nan)
