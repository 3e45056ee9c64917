"""T1, against the sealed delta: the published weights are the reference's plus a delta of low rank, so take it out.

The attacker knows how such locks are made. He does not know the deltas; he cuts the strongest singular directions of
each layer, or those whose loss no label notices, or learns a low-rank correction with what he can ask of maps.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.audit.attacks.key_search import smooth_where_needed
from keylock.audit.attacks.objectives import OBJECTIVES, openable, scene_loss
from keylock.audit.budgets import Budget
from keylock.audit.contract import Cost, Knowledge, Outcome, Steps, attack
from keylock.audit.learning import classes_of, descend, explained, unlocked_copy
from keylock.audit.views import WeightsView
from keylock.models.deltas import adapted_layers, add_deltas_, merge_deltas_, without_directions

_CUTS = (1, 2, 4, 8)
_CANDIDATES = 8
_TOLERANCE = 0.02
_PRUNING_IMAGES = 500
_AT_ONCE = 32
_RANK = 8
_SEARCH_RATE = 3e-2
_TUNING_RATE = 1e-2
_SEARCHES = ("diversify", "faithful", "undo")


def _as_outcome(model: nn.Module, view: WeightsView, cost: Cost, **notes: float) -> Outcome:
    return Outcome(
        maps=explained(model, view.explainers, view.images),
        predictions=classes_of(model, view.images),
        cost=cost,
        notes=notes,
    )


def _cut(count: int, view: WeightsView, _budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    """Cut as many of the strongest directions of every layer but the last, which holds the classes."""
    model = unlocked_copy(view.module).requires_grad_(requires_grad=False)
    layers = list(adapted_layers(model).values())
    with torch.no_grad():
        for layer in layers[:-1]:
            layer.weight.copy_(without_directions(layer.weight, range(count)))
    return _as_outcome(model, view, Cost())


for _count in _CUTS:
    attack(
        f"low_rank/cut_{_count}",
        Knowledge.T1,
        f"Cut the {_count} strongest singular directions of every layer."
        if _count > 1
        else "Cut the strongest singular direction of every layer.",
    )(partial(_cut, _count))


@attack("low_rank/prune", Knowledge.T1, "Cut, layer by layer, strong singular directions that no label misses.")
def prune_directions(view: WeightsView, budget: Budget, _generator: torch.Generator, steps: Steps) -> Outcome:
    """Go through the strongest directions of all layers, and cut each that costs next to no cross-entropy.

    A delta that was trained to leave predictions alone is one that predictions do not miss.
    """
    count = min(budget.few_images, _PRUNING_IMAGES, len(view.own_images))
    images, labels = (part[:count] for part in (view.own_images, view.own_labels))
    model = unlocked_copy(view.module).requires_grad_(requires_grad=False)

    @torch.no_grad()
    def loss(most: float = math.inf) -> float:
        """Return the mean cross-entropy, or what a part of the images adds to it where that is more than `most`."""
        total = 0.0
        for rows, classes in zip(torch.split(images, _AT_ONCE), torch.split(labels, _AT_ONCE), strict=True):
            total += float(F.cross_entropy(model(rows).float(), classes, reduction="sum"))
            # No image takes any of it away.
            if total > most * count:
                break
        return total / count

    layers = list(adapted_layers(model).values())[:-1]
    last, cut = loss(), 0
    for step in steps(len(layers)):
        layer = layers[step]
        original = layer.weight.detach().clone()
        gone: list[int] = []
        for direction in range(min(_CANDIDATES, original.shape[0], original[0].numel())):
            kept = layer.weight.detach().clone()
            with torch.no_grad():
                layer.weight.copy_(without_directions(original, [*gone, direction]))
            found = loss(last + _TOLERANCE)
            if found <= last + _TOLERANCE:
                last = min(found, last)
                gone.append(direction)
            else:
                with torch.no_grad():
                    layer.weight.copy_(kept)
        cut += len(gone)
    return _as_outcome(model, view, Cost(images=len(images), labelled=len(images)), cut=cut)


def _prepared(view: WeightsView, generator: torch.Generator) -> tuple[nn.Module, list[Tensor]]:
    """Return a copy of the published model with low-rank deltas to train, and their parameters."""
    model = add_deltas_(unlocked_copy(view.module), rank=_RANK, generator=generator)
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


def _merged(model: nn.Module) -> nn.Module:
    return merge_deltas_(model).requires_grad_(requires_grad=False)


def _delta_search(
    objective: str, view: WeightsView, budget: Budget, generator: torch.Generator, steps: Steps
) -> Outcome:
    """Search the sealed delta as one searches a key: with an objective on maps, and no true one."""
    explainers = openable(view.explainers, objective)
    images = view.own_images[: budget.few_images]
    model, parameters = _prepared(view, generator)
    loss_of = scene_loss(OBJECTIVES[objective][1], model, view.module, explainers, images)
    with smooth_where_needed(model, explainers):
        descend(
            parameters,
            loss_of,
            len(images),
            steps=steps(budget.search_steps),
            total=budget.search_steps,
            batch=budget.search_batch,
            rate=_SEARCH_RATE,
            generator=generator,
        )
    cost = Cost(images=len(images), steps=budget.search_steps, batch=budget.search_batch)
    return _as_outcome(_merged(model), view, cost)


for _name in _SEARCHES:
    attack(
        f"low_rank/search_{_name}",
        Knowledge.T1,
        f"Search a correction of low rank by gradient: {OBJECTIVES[_name][0]}.",
    )(partial(_delta_search, _name))


@attack("low_rank/tune", Knowledge.T1, "Learn a correction of low rank from labels.")
def tune(view: WeightsView, budget: Budget, generator: torch.Generator, steps: Steps) -> Outcome:
    """Fine-tune deltas of low rank alone, so that no more than a delta's worth can change.

    References:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, section 4.1.
    """
    images, labels = (part[: budget.own_images] for part in (view.own_images, view.own_labels))
    model, parameters = _prepared(view, generator)
    descend(
        parameters,
        lambda rows: F.cross_entropy(model(images[rows]).float(), labels[rows]),
        len(images),
        steps=steps(budget.steps),
        total=budget.steps,
        batch=budget.batch,
        rate=_TUNING_RATE,
        generator=generator,
    )
    cost = Cost(images=len(images), labelled=len(images), steps=budget.steps, batch=budget.batch)
    return _as_outcome(_merged(model), view, cost)
