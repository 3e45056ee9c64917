"""A user's own module as it is handed over: taken out of its wrappers, copied, or refused with the reason."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from keylock.errors import ModelError

__all__ = ["copied", "uncached_", "unwrapped"]

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
        ModelError: It is not a module, or one that cannot be trained; the message says what to give instead.
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
        own.eval()
    except NotImplementedError as error:
        raise ModelError(
            "the model is an exported program, which has no evaluation mode: give the module that was exported"
        ) from error
    return own


def uncached_(model: nn.Module, images: Tensor) -> nn.Module:
    """Keep layers from remembering in evaluation mode what they computed from weights that will change, in place.

    timm's LeViT and EfficientFormer keep their attention biases in a dict, by device.

    Args:
        model: A module in evaluation mode.
        images: What it is run on, to see which dicts it fills.
    """
    # What was kept of weights for evaluation mode is let go in training mode.
    model.train()
    model.eval()
    dicts = [
        (module, name, dict(held))
        for module in model.modules()
        for name, held in vars(module).items()
        if type(held) is dict and not name.startswith("_")
    ]
    with torch.no_grad():
        model(images)
    for module, name, before in dicts:
        filled = vars(module).get(name)
        new = [value for entry, value in filled.items() if entry not in before] if type(filled) is dict else []
        if new and all(isinstance(value, Tensor) for value in new):
            del module.__dict__[name]
            module.__class__ = _forgetful(type(module), name)
    return model


def _forgetful(kind: type[nn.Module], name: str) -> type[nn.Module]:
    """Return the class of modules that have a dict by this name in which they never find what they put there."""
    place = f"_last_{name}"

    def held(self: nn.Module) -> _Uncached:
        found: _Uncached = self.__dict__.setdefault(place, _Uncached())
        return found

    def leave(_self: nn.Module, _value: object) -> None:
        """A new dict in its place, as when a module moves to another device, would remember again."""

    return type(kind.__name__, (kind,), {name: property(held, leave), "__module__": kind.__module__})


class _Uncached(dict[Any, Any]):
    """Gives back what was just written, says of everything that it is not there, and is empty in copies."""

    def __contains__(self, key: object) -> bool:
        return False

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Uncached":
        return _Uncached()


def _require_module(model: object) -> None:
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type):
        raise ModelError(f"the model is the class {model.__name__}: give an instance of it, with trained weights")
    if isinstance(model, Mapping):
        raise ModelError("the model is a state dict: build the module it belongs to and load it, then give the module")
    raise ModelError(f"the model is not a torch.nn.Module but of type {type(model).__name__}: give the trained module")


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
    """Return copies of tensors that hang on a graph, which `deepcopy` refuses; hooks and caches leave such behind."""
    kept = [value for module in model.modules() for value in vars(module).values()]
    kept += [value for held in kept if isinstance(held, dict) for value in held.values()]
    left = (value for value in kept if isinstance(value, Tensor))
    return {id(tensor): tensor.detach().clone() for tensor in left if not tensor.is_leaf}


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
