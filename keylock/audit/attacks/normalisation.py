"""T1: normalisation statistics. Where BatchNorm is live they are estimated again; where it was folded, put back."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from keylock.audit.budgets import Budget
from keylock.audit.contract import Cost, Knowledge, NotApplicableError, Outcome, Steps, attack
from keylock.audit.learning import classes_of, explained, unlocked_copy
from keylock.audit.views import WeightsView
from keylock.evaluation import renormalised

__all__ = ["reestimated"]

_ROWS = 250


def _live(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def reestimated(module: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy of a model with live BatchNorm, with the statistics of images (count, channels, height, width)."""
    model = unlocked_copy(module).requires_grad_(requires_grad=False)
    for norm in _live(model):
        norm.reset_running_stats()
        norm.momentum = None  # The mean of all batches, each of which counts alike.
        norm.train()
    with torch.no_grad():
        for rows in torch.split(images, _ROWS):
            model(rows)
    return model.eval()


def _with_query_statistics(module: nn.Module) -> nn.Module:
    model = unlocked_copy(module).requires_grad_(requires_grad=False)
    for norm in _live(model):
        norm.train()
    return model


def _outcome(model: nn.Module, view: WeightsView, count: int) -> Outcome:
    return Outcome(
        maps=explained(model, view.explainers, view.images),
        predictions=classes_of(model, view.images),
        cost=Cost(images=count),
    )


@attack("batch_norm/reestimated", Knowledge.T1, "Estimate normalisation statistics anew on clean images.")
def reestimate(view: WeightsView, budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    """Use the live BatchNorm where there is one, otherwise one that is put in after every convolution."""
    images = view.own_images[: budget.few_images]
    if _live(view.module):
        return _outcome(reestimated(view.module, images), view, len(images))
    return _outcome(renormalised(view.module, images, batch_statistics=False), view, len(images))


@attack("batch_norm/query", Knowledge.T1, "Normalise by the statistics of the queries themselves.")
def query_statistics(view: WeightsView, budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    """Use the live BatchNorm where there is one, otherwise one that is put in after every convolution."""
    if _live(view.module):
        return _outcome(_with_query_statistics(view.module), view, len(view.images))
    images = view.own_images[: budget.few_images]
    return _outcome(renormalised(view.module, images, batch_statistics=True), view, len(images))


@attack("batch_norm/channels", Knowledge.T1, "Put a normalisation of every channel after every convolution.")
def normalise_channels(view: WeightsView, budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    """Bring every channel to mean 0 and deviation 1, with statistics of clean images."""
    images = view.own_images[: budget.few_images]
    plain = {
        name: (torch.zeros(module.out_channels), torch.ones(module.out_channels))
        for name, module in view.module.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    model = renormalised(view.module, images, batch_statistics=False, target_statistics=plain)
    return _outcome(model, view, len(images))


@attack("batch_norm/base", Knowledge.T1, "Normalise to what the BatchNorm of a public base model puts out.")
def base_statistics(view: WeightsView, budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    """Put the affine part of a public model's BatchNorm back, with statistics of clean images.

    Raises:
        NotApplicableError: No public base with BatchNorm was named.
    """
    if not view.base_statistics:
        raise NotApplicableError(
            "no public model with BatchNorm was named that this one may come from: name one (base=)"
        )
    images = view.own_images[: budget.few_images]
    model = renormalised(view.module, images, batch_statistics=False, target_statistics=view.base_statistics)
    return _outcome(model, view, len(images))
