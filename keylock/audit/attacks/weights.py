"""T1: the published weights made coarser, sparser or noisier, in the hope that the lock is the first thing to go."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from keylock.audit.budgets import Budget
from keylock.audit.contract import ALL_SUITES, LONG_SUITES, Cost, Knowledge, Outcome, Steps, attack
from keylock.audit.learning import classes_of, explained, unlocked_copy
from keylock.audit.views import WeightsView

__all__ = ["changed_weights"]

Change = Callable[[Tensor, torch.Generator], Tensor]
"""From a weight (outputs, ...) and a generator to the changed weight."""

_DRAWS = 4
_QUICK = {"quantise/int8", "prune/30", "prune/70", "weight_noise/0.1"}


def _round_to_int8(weight: Tensor, _generator: torch.Generator) -> Tensor:
    """Symmetric, one scale for each output, as post-training quantisation does."""
    scale = weight.flatten(1).abs().amax(dim=1).clamp_min(1e-12) / 127
    shape = (-1,) + (1,) * (weight.dim() - 1)
    return (weight / scale.view(shape)).round() * scale.view(shape)


def _round_to_fp16(weight: Tensor, _generator: torch.Generator) -> Tensor:
    return weight.half().float()


def _prune(share: float, weight: Tensor, _generator: torch.Generator) -> Tensor:
    """Set the smallest weights of each layer to zero.

    References:
        Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015, section 3.
    """
    sizes = weight.abs().flatten()
    largest_cut = sizes.kthvalue(max(1, round(share * len(sizes)))).values
    return weight * (weight.abs() > largest_cut)


def _shake(size: float, weight: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(weight.shape, generator=generator).to(weight)
    return weight + size * weight.square().mean().sqrt() * noise


def changed_weights(module: nn.Module, change: Change, generator: torch.Generator) -> nn.Module:
    """Return a copy of a model with every weight of more than one dimension changed."""
    model = unlocked_copy(module).requires_grad_(requires_grad=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(change(parameter, generator))
    return model


def _try(
    change: Change, draws: int, view: WeightsView, _budget: Budget, generator: torch.Generator, steps: Steps
) -> Outcome:
    """Average the maps of some draws; changes that are not random need one."""
    sums: dict[str, Tensor] = {}
    model = view.module
    for _ in steps(draws):
        model = changed_weights(view.module, change, generator)
        for name, maps in explained(model, view.explainers, view.images).items():
            unit = maps / maps.mean(dim=(1, 2), keepdim=True).clamp_min(1e-12)
            sums[name] = sums[name] + unit if name in sums else unit
    return Outcome(maps=sums, predictions=classes_of(model, view.images), cost=Cost())


_CHANGES: dict[str, tuple[str, Change, int]] = {
    "quantise/int8": ("Round the weights to int8.", _round_to_int8, 1),
    "quantise/fp16": ("Round the weights to fp16.", _round_to_fp16, 1),
    **{
        f"prune/{round(100 * share)}": (f"Cut the smallest {share:.0%} of the weights.", partial(_prune, share), 1)
        for share in (0.1, 0.3, 0.5, 0.7)
    },
    **{
        f"weight_noise/{size:g}": (f"Add noise of {size:g} of the weights' size.", partial(_shake, size), _DRAWS)
        for size in (0.03, 0.1, 0.3)
    },
}

for _name, (_summary, _change, _count) in _CHANGES.items():
    attack(_name, Knowledge.T1, _summary, suites=ALL_SUITES if _name in _QUICK else LONG_SUITES)(
        partial(_try, _change, _count)
    )
