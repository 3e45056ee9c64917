"""A copy by imitation: a fresh network learns the public predictions, and is explained in place of the locked one.

Whether the predictions come over the network (T0, a surrogate) or from the published weights (T1, distillation), no
lock acts on the copy. What an attacker gains over training on labels of his own is the leak advantage.
"""

from functools import partial

import torch
from torch import Tensor

from keylock.audit.budgets import Budget
from keylock.audit.contract import Cost, Knowledge, Outcome, Steps, attack
from keylock.audit.learning import classes_of, explained, predicted, train_classifier
from keylock.audit.views import PublicView, WeightsView

__all__: list[str] = []

RATE = 3e-3
"""Highest learning rate of Adam for every network that is trained from scratch, those of the baseline too."""


def _imitate(
    view: PublicView, wanted: Tensor, total: int, budget: Budget, generator: torch.Generator, steps: Steps
) -> Outcome:
    answered = wanted.isfinite().all(dim=1)
    copy = train_classifier(
        view.fresh(generator),
        view.own_images[: len(wanted)][answered],
        wanted[answered],
        steps=steps(total),
        total=total,
        batch=budget.batch,
        rate=RATE,
        generator=generator,
        live=True,
    )
    return Outcome(
        maps=explained(copy, view.explainers, view.images),
        predictions=classes_of(copy, view.images),
        cost=Cost(queries=view.oracle.queries, images=len(wanted), steps=total, batch=budget.batch),
    )


def _surrogate(few: bool, view: PublicView, budget: Budget, generator: torch.Generator, steps: Steps) -> Outcome:
    count = budget.few_predictions if few else budget.predictions
    total = budget.few_steps if few else budget.steps
    return _imitate(view, view.oracle.predict(view.own_images[:count]), total, budget, generator, steps)


for _size, _few in (("few", True), ("many", False)):
    attack(f"surrogate/{_size}", Knowledge.T0, f"Train a network on {_size} public predictions, and explain that.")(
        partial(_surrogate, _few)
    )


@attack("distillation", Knowledge.T1, "Distil the published classifier into a fresh network, and explain that.")
def distillation(view: WeightsView, budget: Budget, generator: torch.Generator, steps: Steps) -> Outcome:
    """Learn the logits of the published classifier on all of the attacker's images.

    References:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2 (temperature 1).
    """
    wanted = predicted(view.module, view.own_images[: budget.own_images])
    return _imitate(view, wanted, budget.steps, budget, generator, steps)
