"""T1: training on with labels, which makes a network of one's own out of a locked one, and may bring the truth back."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from keylock.audit.budgets import Budget
from keylock.audit.contract import ALL_SUITES, LONG_SUITES, Cost, Knowledge, NotApplicableError, Outcome, Steps, attack
from keylock.audit.learning import classes_of, explained, train_classifier, unlocked_copy
from keylock.audit.views import WeightsView
from keylock.models import capture_outputs

__all__ = ["dormant_channels"]

_MOMENTUM = 0.9
_RATES = (1e-3, 1e-2, 3e-2)
_PRUNED = 0.3


def _tuned(
    model: nn.Module,
    few: bool,
    rate: float,
    view: WeightsView,
    budget: Budget,
    generator: torch.Generator,
    steps: Steps,
) -> Outcome:
    count = min(budget.few_images if few else budget.own_images, len(view.own_images))
    total = budget.few_steps if few else budget.steps
    tuned = train_classifier(
        model,
        view.own_images[:count],
        view.own_labels[:count],
        steps=steps(total),
        total=total,
        batch=budget.batch,
        rate=rate,
        generator=generator,
        momentum=_MOMENTUM,
        # Live BatchNorm is what a baseline lock falls to first; a folded one has none.
        live=any(isinstance(module, _BatchNorm) for module in model.modules()),
    )
    return Outcome(
        maps=explained(tuned, view.explainers, view.images),
        predictions=classes_of(tuned, view.images),
        cost=Cost(images=count, labelled=count, steps=total, batch=budget.batch),
        notes={"learning rate": rate},
    )


def _fine_tune(
    few: bool, rate: float, view: WeightsView, budget: Budget, generator: torch.Generator, steps: Steps
) -> Outcome:
    return _tuned(unlocked_copy(view.module), few, rate, view, budget, generator, steps)


for _few in (True, False):
    for _rate in _RATES:
        _size = "few" if _few else "many"
        attack(
            f"fine_tune/{_size}_{_rate:g}",
            Knowledge.T1,
            f"Fine-tune on {_size} labelled images, SGD at {_rate:g}.",
            suites=ALL_SUITES if _rate == _RATES[1] else LONG_SUITES,
        )(partial(_fine_tune, _few, _rate))


def dormant_channels(module: nn.Module, name: str, images: Tensor, share: float) -> Tensor:
    """Return which channels of a layer are least active on clean images (channels,), True for a share of them."""
    with torch.no_grad(), capture_outputs(module, [name]) as outputs:
        module(images)
    activity = outputs[name].abs().mean(dim=(0, 2, 3))
    ranks = activity.argsort().argsort()
    return ranks < round(share * len(activity))


@attack("fine_prune", Knowledge.T1, "Cut the channels that sleep on clean images, then fine-tune.")
def fine_prune(view: WeightsView, budget: Budget, generator: torch.Generator, steps: Steps) -> Outcome:
    """Prune the last convolution by activity, then fine-tune on few labelled images.

    References:
        Liu, Dolan-Gavitt and Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks",
        RAID 2018, section 3.

    Raises:
        NotApplicableError: There is no convolution.
    """
    model = unlocked_copy(view.module)
    convolutions = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    if not convolutions:
        raise NotApplicableError("the model has no convolution whose channels could be cut")
    name = list(convolutions)[-1]
    asleep = dormant_channels(view.module, name, view.own_images[: budget.few_images], _PRUNED)
    with torch.no_grad():
        convolutions[name].weight[asleep] = 0
        if convolutions[name].bias is not None:
            convolutions[name].bias[asleep] = 0  # type: ignore[index]
    return _tuned(model, True, _RATES[1], view, budget, generator, steps)
