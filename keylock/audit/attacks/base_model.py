"""T1: a vendor who started from a public model has shown most of his reference to everybody."""

from collections.abc import Mapping

import torch
from torch import Tensor

from keylock.audit.budgets import Budget
from keylock.audit.contract import Knowledge, NotApplicableError, Outcome, Steps, attack
from keylock.audit.learning import explained, unlocked_copy
from keylock.audit.views import WeightsView
from keylock.models import load_state

__all__: list[str] = []


@attack("base_model", Knowledge.T1, "Compare the weights with a public model it may come from, and explain that.")
def base_model(view: WeightsView, _budget: Budget, _generator: torch.Generator, steps: Steps) -> Outcome:
    """Explain the base, and models on the line through the base and the published weights.

    Raises:
        NotApplicableError: No public base was named.
    """
    if view.base is None:
        raise NotApplicableError("no public model was named that this one may come from: name one (base=)")
    published, base = view.module.state_dict(), view.base.state_dict()
    shares = (0.0, 0.25, 0.5, -0.5)
    maps: dict[str, Tensor] = {}
    for step in steps(len(shares)):
        model = unlocked_copy(view.module)
        load_state(model, _between(base, published, shares[step]))
        model.requires_grad_(requires_grad=False)
        for name, found in explained(model, view.explainers, view.images).items():
            maps[name if shares[step] == 0 else f"{name}: {shares[step]:g} of the way"] = found
    changes = [_relative_change(base[name], tensor) for name, tensor in published.items() if tensor.dim() > 1]
    return Outcome(maps=maps, notes={"largest relative change of a weight tensor": max(changes)})


def _between(base: Mapping[str, Tensor], published: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    return {
        name: base[name] + share * (tensor - base[name]) if tensor.is_floating_point() else tensor
        for name, tensor in published.items()
    }


def _relative_change(before: Tensor, after: Tensor) -> float:
    return float((after - before).norm() / before.norm().clamp_min(1e-12))
