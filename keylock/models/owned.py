"""A user's own module as it is handed over: taken out of its wrappers, copied, or refused with the reason."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from keylock.errors import ModelError

__all__ = ["copied", "unwrapped"]

_STATISTICS = ("running_mean", "running_var")
_QUANTISED = (".quantized.", "torchao.", "bitsandbytes.")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile`, `DataParallel` and `DistributedDataParallel`, however often wrapped."""
    while True:
        inner = _inner(model)
        if inner is None:
            return model
        model = inner


def _inner(module: nn.Module) -> nn.Module | None:
    if isinstance(module, torch.jit.ScriptModule):
        return None
    compiled = module._modules.get("_orig_mod")
    if compiled is not None:
        return compiled
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: nn.Module = module.module
        return inner
    return None


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a user's module on the CPU, in float32 and evaluation mode, without wrappers.

    Raises:
        ModelError: It is no module, or one that cannot be trained; the message says what to give instead.
    """
    _require_module(model)
    model = unwrapped(model)
    _require_trainable(model)
    try:
        own = copy.deepcopy(model, _fixed_tensors(model))
    except Exception as error:
        raise ModelError(
            f"the model cannot be copied ({_first_line(error)}): give one that copy.deepcopy takes"
        ) from error
    for parent in list(own.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and _inner(child) is not None:
                setattr(parent, name, unwrapped(child))
    own = own.cpu().float()
    try:
        return own.eval()
    except NotImplementedError as error:
        raise ModelError(
            "the model is an exported program, which has no evaluation mode: give the module that was exported"
        ) from error


def _require_module(model: object) -> None:
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type):
        raise ModelError(f"the model is the class {model.__name__}: give an instance of it, with trained weights")
    if isinstance(model, Mapping):
        raise ModelError("the model is a state dict: build the module it belongs to and load it, then give the module")
    raise ModelError(f"the model is no torch.nn.Module but of type {type(model).__name__}: give the trained module")


def _require_trainable(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{_called(name)} is TorchScript, which cannot be changed: give the module it was made from"
            )
        kind = f"{type(module).__module__}.{type(module).__name__}"
        if any(part in kind for part in _QUANTISED):
            raise ModelError(
                f"{_called(name)} is quantised ({type(module).__name__}), so it cannot be trained: give the module "
                "from before quantisation"
            )
    for name, tensor in _tensors(model):
        if isinstance(tensor, UninitializedParameter):
            raise ModelError(f"the weight {name!r} has no shape yet: run the model once, and train it, before locking")
        if tensor.is_meta:
            raise ModelError(f"the weight {name!r} is on the meta device, without values: load the weights first")
        if isinstance(tensor, nn.Parameter) and not (tensor.is_floating_point() or tensor.is_complex()):
            raise ModelError(
                f"the weight {name!r} is of type {str(tensor.dtype).removeprefix('torch.')}, as quantised ones are, so "
                "it cannot be trained: give the module from before quantisation"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"the weight {name!r} holds values that are NaN or infinite: give a model that is trained")


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    # Other buffers, such as attention masks, may be infinite.
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name.endswith(_STATISTICS))


def _called(name: str) -> str:
    return f"the layer {name!r}" if name else "the model"


def _fixed_tensors(model: nn.Module) -> dict[int, Any]:
    """Return copies of tensors that hang on a graph, which `deepcopy` refuses; hooks of old kinds leave such behind."""
    left = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return {id(tensor): tensor.detach().clone() for tensor in left if not tensor.is_leaf}


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
