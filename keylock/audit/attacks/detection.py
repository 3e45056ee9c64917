"""Can it be told that maps are locked? A detector gives scores; the auditor runs it on the lock and on the reference.

Nothing is promised here: a lock that can be noticed is still shut. What is found is the probability that a score of the
locked model is larger than one of the reference model: one half where nothing can be told.
"""

import torch
from torch import Tensor, nn

from keylock.audit.attacks.imitation import RATE
from keylock.audit.budgets import Budget
from keylock.audit.contract import LONG_SUITES, Cost, Goal, Knowledge, NotApplicableError, Outcome, Steps, attack
from keylock.audit.learning import descend, explained, train_classifier, unlocked_copy
from keylock.audit.views import PublicView, WeightsView
from keylock.evaluation import deletion, pearson, random_maps
from keylock.models.deltas import adapted_layers

__all__ = ["weight_features"]

_POPULATION = 3
_DELETION_STEPS = 8
_TRIGGER_RATE = 0.1
_TRIGGER_PRICE = 0.01


@attack(
    "detect/faithfulness", Knowledge.T0, "Delete what maps mark and see whether predictions mind.", goal=Goal.DETECT
)
def faithfulness(view: PublicView, budget: Budget, generator: torch.Generator, steps: Steps) -> Outcome:
    """Score each image by how much slower its class vanishes than when pixels go in random order.

    References:
        Petsiuk, Das and Saenko, "RISE", BMVC 2018, section 4.2: the deletion metric.
    """
    images = view.images[: 2 * budget.slow_images]
    classes = view.oracle.predict(images).argmax(dim=1)
    scores = []
    for step in steps(len(view.oracle.names)):
        maps = view.oracle.explain(view.oracle.names[step], images)
        areas = [
            deletion(view.oracle.predict, images, found, classes, generator=generator, steps=_DELETION_STEPS)
            for found in (maps, random_maps(maps, generator=generator))
        ]
        scores.append(areas[0] - areas[1])
    found = torch.stack(scores).mean(dim=0)
    # Of what was refused nothing is known.
    told = found[found.isfinite()]
    if not len(told):
        raise NotApplicableError("too many copies were refused to tell anything")
    return Outcome(scores=told, cost=Cost(queries=view.oracle.queries))


@attack("detect/randomisation", Knowledge.T1, "Randomise the last layer and see whether maps mind.", goal=Goal.DETECT)
def randomisation(view: WeightsView, _budget: Budget, generator: torch.Generator, _steps: Steps) -> Outcome:
    """Score each image by how alike its map stays when the weights of the last layer are shuffled.

    References:
        Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, section 3.
    """
    model = unlocked_copy(view.module).requires_grad_(requires_grad=False)
    last = list(adapted_layers(model).values())[-1]
    with torch.no_grad():
        flat = last.weight.flatten()
        last.weight.copy_(flat[torch.randperm(len(flat), generator=generator)].view_as(last.weight))
    before = explained(view.module, view.explainers, view.images)
    after = explained(model, view.explainers, view.images)
    alike = [pearson(after[name], before[name]) for name in before]
    return Outcome(scores=torch.stack(alike).mean(dim=0))


def weight_features(module: nn.Module) -> Tensor:
    """Return what can be told from the weights of each layer alone (layers, 3).

    The logarithm of the deviation, the kurtosis, and the share of the strongest singular value.
    """
    rows = []
    for layer in adapted_layers(module).values():
        flat = layer.weight.detach().flatten(1).double()
        centred = flat - flat.mean()
        variance = centred.square().mean().clamp_min(1e-24)
        sizes = torch.linalg.svdvals(flat)
        rows.append(
            torch.stack(
                [
                    0.5 * variance.log(),
                    centred.pow(4).mean() / variance.square(),
                    sizes[0] / sizes.sum().clamp_min(1e-24),
                ]
            )
        )
    return torch.stack(rows)


@attack(
    "detect/weights",
    Knowledge.T1,
    "Compare weight statistics with those of honest networks.",
    goal=Goal.DETECT,
    suites=LONG_SUITES,
)
def weights(view: WeightsView, budget: Budget, generator: torch.Generator, steps: Steps) -> Outcome:
    """Score each statistic of each layer by its distance from those of networks the attacker trained himself."""
    population = []
    images, labels = (part[: budget.few_images] for part in (view.own_images, view.own_labels))
    for _ in range(_POPULATION):
        network = train_classifier(
            view.fresh(generator),
            images,
            labels,
            steps=steps(budget.few_steps),
            total=budget.few_steps,
            batch=budget.search_batch,
            rate=RATE,
            generator=generator,
            live=True,
        )
        population.append(weight_features(network))
    spread, middle = torch.std_mean(torch.stack(population), dim=0)
    scores = ((weight_features(view.module) - middle) / spread.clamp_min(1e-3)).abs().flatten()
    total, batch = _POPULATION * budget.few_steps, budget.search_batch
    return Outcome(scores=scores, cost=Cost(images=len(images), labelled=len(images), steps=total, batch=batch))


@attack(
    "detect/trigger",
    Knowledge.T1,
    "Reverse-engineer a trigger for each class (Neural Cleanse).",
    goal=Goal.DETECT,
    suites=LONG_SUITES,
)
def trigger(view: WeightsView, budget: Budget, generator: torch.Generator, steps: Steps) -> Outcome:
    """Find for each class the smallest mask and pattern that turn everything into it, and score how small it is.

    References:
        Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P 2019,
        section 4: anomalous is a mask smaller than the median by two deviations.
    """
    images = view.own_images[: budget.few_images]
    with torch.no_grad():
        classes = view.module(images[:1]).shape[1]
    model = unlocked_copy(view.module).requires_grad_(requires_grad=False)
    sizes = []
    for target in range(classes):
        mask = torch.zeros((1, *images.shape[2:])).requires_grad_()
        pattern = torch.zeros(images.shape[1:]).requires_grad_()

        def loss_of(rows: Tensor, mask: Tensor = mask, pattern: Tensor = pattern, target: int = target) -> Tensor:
            share = torch.sigmoid(mask - 2)
            stamped = (1 - share) * images[rows] + share * 2 * torch.tanh(pattern)
            wanted = torch.full((len(rows),), target)
            price = _TRIGGER_PRICE * share.sum()
            return nn.functional.cross_entropy(model(stamped).float(), wanted) + price

        descend(
            [mask, pattern],
            loss_of,
            len(images),
            steps=steps(budget.few_steps),
            total=budget.few_steps,
            batch=budget.search_batch,
            rate=_TRIGGER_RATE,
            generator=generator,
        )
        sizes.append(torch.sigmoid(mask.detach() - 2).sum())
    found = torch.stack(sizes)
    deviation = 1.4826 * (found - found.median()).abs().median()
    scores = (found.median() - found) / deviation.clamp_min(1e-6)
    total = classes * budget.few_steps
    return Outcome(
        scores=scores,
        cost=Cost(images=len(images), steps=total, batch=budget.search_batch),
        notes={"anomaly index": round(float(scores.max()), 2)},
    )
