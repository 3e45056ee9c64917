"""BatchNorm folded away, so that nobody can re-estimate its statistics and break a lock with them.

In evaluation mode BatchNorm is a per-channel scale and shift. Where a convolution feeds it and nothing else reads that
convolution's output, scale and shift move into the convolution's weights; elsewhere (pre-activation networks, for
example) they become a `ChannelAffine`. The module tree stays as it was: a folded BatchNorm leaves an `Identity` of the
same name behind, so that hooks and layer names keep working.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from keylock.errors import ModelError
from keylock.models.balance import make_plain

__all__ = ["ChannelAffine", "fold_", "fold_batchnorm_", "names_of_statistics"]


class ChannelAffine(nn.Module):
    """Scale and shift each channel by constants: BatchNorm in evaluation mode, without its statistics."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale.clone())
        self.shift = nn.Parameter(shift.clone())

    def forward(self, input: Tensor) -> Tensor:
        """Map (batch, channels, ...) to the same shape."""
        shape = (1, -1) + (1,) * (input.dim() - 2)
        return input * self.scale.view(shape) + self.shift.view(shape)


def fold_batchnorm_(model: nn.Module, example: Tensor, *, tolerance: float = 1e-3) -> nn.Module:
    """Take every BatchNorm out of a model, in place, without changing what it computes in evaluation mode.

    The model is left in evaluation mode. Parametrised weights (weight normalisation, spectral normalisation) become
    plain ones of their present value.

    Args:
        model: Any classifier.
        example: Images (batch, channels, height, width) to find the data flow with and to check the result on.
        tolerance: Largest change of a logit allowed, relative to the largest logit.

    Returns:
        The same model.

    Raises:
        ModelError: The model does not take the example or does not return logits, a BatchNorm keeps no running
            statistics, or the check found a larger change than `tolerance`, or logits that are not finite.
    """
    model.eval()
    with torch.no_grad():
        before = _logits(model, example)
        fold_(model, example)
        after = model(example)
    change = float((after - before).abs().max() / before.abs().max().clamp_min(1e-6))
    # Written so that a change that is not a number is refused too.
    if not change <= tolerance:
        raise ModelError(
            f"folding BatchNorm changed the logits by {change:.1e} of their range (allowed: {tolerance:.0e}): "
            "the model uses a layer in a way keylock does not know; fold it yourself and pass it folded"
        )
    return model


@torch.no_grad()
def fold_(model: nn.Module, example: Tensor, *, only: str | None = None, apart: Collection[str] = ()) -> nn.Module:
    """Take BatchNorm out of a model, in place, without a check of the result.

    Args:
        model: A classifier in evaluation mode.
        example: Images to find the data flow with.
        only: The name of the one BatchNorm to fold; None folds all.
        apart: Names of those that become a `ChannelAffine` even where a convolution could absorb them.

    Raises:
        ModelError: A BatchNorm keeps no running statistics.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            make_plain(module)
    producers = _producers(model, example)
    replacements: dict[nn.Module, nn.Module] = {}
    # With duplicates, because one module may stand under several names.
    for name, norm in list(model.named_modules(remove_duplicate=False)):
        if not _keeps_statistics(norm) or (only is not None and name != only):
            continue
        if norm not in replacements:
            replacements[norm] = _fold(name, norm, None if name in apart else producers.get(norm))
        _replace(model, name, replacements[norm].eval())
    return model


def names_of_statistics(model: nn.Module) -> list[str]:
    """Return the names of all modules that normalise by statistics of earlier images."""
    return [name for name, module in model.named_modules() if _keeps_statistics(module)]


def _logits(model: nn.Module, example: Tensor) -> Tensor:
    """Run a model for the first time, and say what is wrong where it is not a classifier of these images."""
    try:
        logits = model(example)
    except RuntimeError as error:
        raise ModelError(f"the model does not take images of shape {tuple(example.shape)}: {error}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(example):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"the model must return logits (batch, classes), not {found}: wrap it in a module that does")
    return logits


def _keeps_statistics(module: nn.Module) -> TypeGuard[_BatchNorm | _InstanceNorm]:
    """Tell whether a module normalises by statistics of earlier images."""
    return isinstance(module, _BatchNorm) or (isinstance(module, _InstanceNorm) and module.track_running_stats)


def _fold(name: str, norm: _BatchNorm | _InstanceNorm, convolution: nn.Conv2d | None) -> nn.Module:
    """Return what takes the place of a BatchNorm, after changing the convolution where one absorbs it."""
    scale, shift = _scale_and_shift(name, norm)
    affine: nn.Module
    if convolution is None:
        affine = ChannelAffine(scale.to(norm.running_var), shift.to(norm.running_var))
    else:
        _absorb(convolution, scale, shift)
        affine = nn.Identity()
    # Some libraries put the activation into the BatchNorm, as a child that its forward calls last.
    inside = OrderedDict(norm.named_children())
    return nn.Sequential(OrderedDict(affine=affine, **inside)) if inside else affine


def _producers(model: nn.Module, example: Tensor) -> dict[nn.Module, nn.Conv2d]:
    """Find, for each BatchNorm, the convolution whose output it alone reads."""
    candidates = _candidates(model, example)
    if _read_by_nothing_else(model, example, candidates):
        return candidates
    return {
        norm: convolution
        for norm, convolution in candidates.items()
        if _read_by_nothing_else(model, example, {norm: convolution})
    }


def _is_plain(convolution: nn.Module) -> bool:
    """Tell whether a convolution is linear in its weight; subclasses may standardise it first."""
    return isinstance(convolution, nn.Conv2d) and type(convolution).forward is nn.Conv2d.forward


def _candidates(model: nn.Module, example: Tensor) -> dict[nn.Module, nn.Conv2d]:
    """Find the pairs of a convolution that runs once and the one BatchNorm that is called with its output."""
    made_by: dict[int, nn.Conv2d] = {}
    kept: list[Tensor] = []  # Holding the tensors keeps their ids from being used again.
    calls: Counter[nn.Module] = Counter()
    found: dict[nn.Module, nn.Conv2d] = {}

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] += 1
        if isinstance(module, nn.Conv2d):
            if _is_plain(module):
                made_by[id(output)] = module
            kept.append(output)
        elif inputs and id(inputs[0]) in made_by:
            found[module] = made_by[id(inputs[0])]

    watched = [m for m in model.modules() if isinstance(m, nn.Conv2d) or _keeps_statistics(m)]
    handles = [module.register_forward_hook(after) for module in watched]
    try:
        model(example)
    finally:
        for handle in handles:
            handle.remove()
    readers = Counter(found.values())
    owners = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    return {
        norm: convolution
        for norm, convolution in found.items()
        if calls[norm] == 1
        and calls[convolution] == 1
        and readers[convolution] == 1
        # A weight that two layers share cannot absorb what follows one of them.
        and owners[id(convolution.weight)] == 1
    }


def _read_by_nothing_else(model: nn.Module, example: Tensor, pairs: Mapping[nn.Module, nn.Conv2d]) -> bool:
    """Tell whether only their BatchNorms read the convolutions' outputs, functions that hooks cannot see included.

    Every convolution hands out NaN, and its BatchNorm gets the true output behind everybody's back: logits that are
    numbers have not seen the NaN.
    """
    true_outputs: dict[nn.Module, Tensor] = {}

    def poison(convolution: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        true_outputs[convolution] = output
        return torch.full_like(output, torch.nan)

    def cure(convolution: nn.Module, _norm: nn.Module, _inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (true_outputs[convolution],)

    handles = [convolution.register_forward_hook(poison) for convolution in pairs.values()]
    handles += [norm.register_forward_pre_hook(partial(cure, made_by)) for norm, made_by in pairs.items()]
    try:
        return not bool(model(torch.nan_to_num(example)).isnan().any())
    finally:
        for handle in handles:
            handle.remove()


def _scale_and_shift(name: str, norm: _BatchNorm | _InstanceNorm) -> tuple[Tensor, Tensor]:
    """Return the per-channel scale and shift (channels,) that a BatchNorm applies in evaluation mode.

    They are in double precision: deep networks multiply what is lost by rounding more than once.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ModelError(f"the BatchNorm {name!r} keeps no running statistics: train it with track_running_stats=True")
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _absorb(convolution: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
    weight, bias = convolution.weight, convolution.bias
    weight.copy_(weight.double() * scale.view(-1, 1, 1, 1))
    absorbed = shift if bias is None else bias.double() * scale + shift
    convolution.bias = nn.Parameter(absorbed.to(weight))


def _replace(model: nn.Module, name: str, replacement: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, replacement)
