"""What is done to every classifier before it is locked, and the check that it is still the same function."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from keylock.errors import ModelError
from keylock.models.answers import give_logits_, logits_of_answer, run
from keylock.models.folding import fold_, names_of_statistics
from keylock.models.in_place import out_of_place_
from keylock.models.owned import copied, uncached_, unwrapped
from keylock.models.recording import evaluating

__all__ = ["prepare"]

_TOLERANCE = 1e-5
# For modules that do not run in double precision, so that rounding cannot be told from a change.
_ROUGH = 1e-4
_FEW = 2


def prepare(model: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy of a classifier as locks work on it: with logits, in float32, without BatchNorm, evaluation mode.

    The same steps are taken for the same architecture, whatever its weights, so that weights of one copy fit another.

    Args:
        model: A user's module; it is left as it is.
        example: Preprocessed images (batch, channels, height, width), as real as there are.

    Raises:
        ModelError: The module cannot be trained or returns no logits, answers the same images differently from call to
            call, or could not be prepared without a change of its logits by more than 1e-5 of their range; the message
            names the layer.
    """
    own = uncached_(give_logits_(_settled(copied(model)), example[:_FEW]), example[:_FEW])
    expected = _own_logits(model, own, example)
    _require_steady(own, example[:_FEW])
    quiet = out_of_place_(copy.deepcopy(own), example)
    if _change(own, quiet, example, expected) > _TOLERANCE:
        # A read that hides what was read, so that it was not found: everything stays in place.
        quiet = copy.deepcopy(own)
    folded = fold_(copy.deepcopy(quiet), example)
    change = _change(own, folded, example, expected)
    if change <= _TOLERANCE:
        return folded
    apart = frozenset(
        name
        for name in names_of_statistics(quiet)
        if not _change(own, fold_(copy.deepcopy(quiet), example, only=name), example, expected) <= _TOLERANCE
    )
    folded = fold_(copy.deepcopy(quiet), example, apart=apart)
    change = _change(own, folded, example, expected)
    if change <= _TOLERANCE:
        return folded
    where = f"the BatchNorm {next(iter(sorted(apart)))!r}" if apart else "BatchNorm"
    raise ModelError(
        f"folding {where} changed the logits by {change:.1e} of their range (allowed: {_TOLERANCE:.0e}): the model "
        "reads it in a way keylock does not know; fold it yourself and pass it folded"
    )


def _settled(model: nn.Module) -> nn.Module:
    """Write randomised leaky units as what they are in evaluation mode; torch's kernel counts as one that draws."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if type(child) is nn.RReLU:
                setattr(parent, name, nn.LeakyReLU((child.lower + child.upper) / 2, inplace=child.inplace).eval())
    return model


@torch.no_grad()
def _own_logits(model: nn.Module, own: nn.Module, example: Tensor) -> Tensor:
    """Return the logits of the user's module itself; of the copy, where they are of another precision or device."""
    plain = unwrapped(model)
    if plain is not model or any(t.dtype != torch.float32 or t.device.type != "cpu" for t in plain.parameters()):
        logits: Tensor = run(own, example)
        return logits
    with evaluating(plain):
        return logits_of_answer(own, run(plain, example))


def _change(own: nn.Module, changed: nn.Module, example: Tensor, expected: Tensor) -> float:
    """Return the largest difference of a logit as a share of their range; NaN becomes infinity.

    Where rounding could explain it, both are compared in double precision; and what changes no more than rounding to
    float32 changes the module itself does not count.
    """
    with torch.no_grad():
        try:
            rough = _share(run(changed, example), expected)
        except ModelError:
            return float("inf")
        if rough <= _TOLERANCE or rough > 0.1:
            return rough
        few = example[: 4 * _FEW].double()
        try:
            exact = run(copy.deepcopy(own).double(), few)
            change = _share(run(copy.deepcopy(changed).double(), few), exact)
            rounding = _share(run(own, few.float()).double(), exact)
            return 0.0 if change <= min(rounding, _ROUGH) else change
        except ModelError:
            return _TOLERANCE if rough <= _ROUGH else rough


def _share(found: Tensor, expected: Tensor) -> float:
    span = (expected.max() - expected.min()).clamp_min(1e-6)
    share = float((found - expected).abs().max() / span)
    return share if share == share else float("inf")


@torch.no_grad()
def _require_steady(model: nn.Module, images: Tensor) -> None:
    """Refuse a module with random numbers in evaluation mode, and name the layer that draws them."""
    first, second = _outputs(model, images), _outputs(model, images)
    if _share(second[""][0], first[""][0]) <= _TOLERANCE:
        return
    changed = [
        name
        for name, outputs in first.items()
        if len(outputs) != len(second.get(name, ()))
        or any(not torch.equal(*p) for p in zip(outputs, second[name], strict=True))
    ]
    where = f" (the layer {changed[0]!r} is the first whose output changes)" if changed and changed[0] else ""
    raise ModelError(
        f"the model answers the same images differently from call to call, in evaluation mode{where}: switch off its "
        "dropout or other random numbers there"
    )


def _outputs(model: nn.Module, images: Tensor) -> dict[str, list[Tensor]]:
    """Return a copy of what every layer gives out, by its name, in the order in which they end; the model is ''."""
    found: dict[str, list[Tensor]] = {}
    names = {module: name for name, module in model.named_modules()}

    def keep(module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        if isinstance(output, Tensor):
            found.setdefault(names[module], []).append(output.detach().clone())

    handles = [module.register_forward_hook(keep) for module in names]
    try:
        run(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return found
