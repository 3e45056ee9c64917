"""T1: a search for the key in the published weights, by gradient; T2: the same with keyed pairs to aim at."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.audit.attacks.objectives import OBJECTIVES, Objective, openable, scene_loss
from keylock.audit.budgets import Budget
from keylock.audit.contract import ALL_SUITES, LONG_SUITES, Cost, Knowledge, Outcome, Steps, attack
from keylock.audit.learning import classes_of, descend, explained, unlocked_copy
from keylock.audit.views import PairsView, WeightsView
from keylock.evaluation import added_to_inputs
from keylock.explainers import Explainer, explain_many
from keylock.locking.losses import correlation
from keylock.models import smooth_activations

__all__ = ["smooth_where_needed"]

_RATE = 0.3


def smooth_where_needed(model: nn.Module, explainers: Mapping[str, Explainer]) -> AbstractContextManager[object]:
    """Return a context in which gradients of gradients exist, where an explainer takes them."""
    return smooth_activations(model) if any(one.second_order for one in explainers.values()) else nullcontext()


class _Candidate:
    """A perturbation in search: a tile or a full-size pattern, never higher than the key."""

    def __init__(self, view: WeightsView, *, full: bool, generator: torch.Generator) -> None:
        channels, height, width = view.images.shape[1:]
        shape = (channels, height, width) if full else (channels, view.tile, view.tile)
        self.parameter = (0.1 * torch.randn(shape, generator=generator)).to(view.images).requires_grad_()
        self._repeats = (1, 1, 1) if full else (1, -(-height // view.tile), -(-width // view.tile))
        self._size, self._height = (height, width), view.height

    def offset(self) -> Tensor:
        """Return the perturbation (channels, height, width)."""
        rows, columns = self._size
        return torch.tanh(self.parameter).repeat(self._repeats)[:, :rows, :columns] * self._height


def _search(
    objective: Objective,
    explainers: Mapping[str, Explainer],
    full: bool,
    view: WeightsView,
    budget: Budget,
    generator: torch.Generator,
    steps: Steps,
) -> tuple[Tensor, float]:
    """Search once.

    Returns:
        The perturbation (channels, height, width), and its loss on images it was not found on.
    """
    images = view.own_images[: budget.few_images]
    model = unlocked_copy(view.module).requires_grad_(requires_grad=False)
    candidate = _Candidate(view, full=full, generator=generator)
    loss = scene_loss(objective, model, view.module, explainers, images)

    def loss_of(rows: Tensor) -> Tensor:
        with added_to_inputs(model, candidate.offset()):
            return loss(rows)

    with smooth_where_needed(model, explainers):
        descend(
            [candidate.parameter],
            loss_of,
            len(images),
            steps=steps(budget.search_steps),
            total=budget.search_steps,
            batch=budget.search_batch,
            rate=_RATE,
            generator=generator,
        )
        final = float(loss_of(torch.randperm(len(images), generator=generator)[: budget.search_batch]).detach())
    return candidate.offset().detach(), final


def _key_search(
    objective: str, full: bool, view: WeightsView, budget: Budget, generator: torch.Generator, steps: Steps
) -> Outcome:
    explainers = openable(view.explainers, objective)
    tries = [
        _search(OBJECTIVES[objective][1], explainers, full, view, budget, generator, steps)
        for _ in range(budget.restarts)
    ]
    offset, loss = min(tries, key=lambda found: found[1])
    images = view.images + offset
    total = budget.restarts * budget.search_steps
    return Outcome(
        maps=explained(view.module, view.explainers, images),
        predictions=classes_of(view.module, images),
        cost=Cost(images=min(budget.few_images, len(view.own_images)), steps=total, batch=budget.search_batch),
        notes={"loss": round(loss, 4), "restarts": budget.restarts},
    )


for _name, (_what, _) in OBJECTIVES.items():
    for _full in (False, True):
        _kind = "full" if _full else "tile"
        attack(
            f"key_search/{_name}_{_kind}",
            Knowledge.T1,
            f"Search a key by gradient, {'of full size' if _full else 'one tile'}: {_what}.",
            suites=LONG_SUITES if _full and _name != "move" else ALL_SUITES,
        )(partial(_key_search, _name, _full))


def _with_pairs(full: bool, view: PairsView, budget: Budget, generator: torch.Generator, steps: Steps) -> Outcome:
    explainers = openable(view.explainers, "move")
    classes = classes_of(view.module, view.pair_images)
    model = unlocked_copy(view.module).requires_grad_(requires_grad=False)
    candidate = _Candidate(view, full=full, generator=generator)

    def loss_of(rows: Tensor) -> Tensor:
        with added_to_inputs(model, candidate.offset()):
            logits, maps = explain_many(
                model, tuple(explainers.values()), view.pair_images[rows], classes[rows], create_graph=True
            )
        found = [1 - correlation(maps[name], view.pair_maps[name][rows]).mean() for name in explainers]
        return torch.stack(found).mean() + 0.1 * F.cross_entropy(logits.float(), classes[rows])

    with smooth_where_needed(model, explainers):
        descend(
            [candidate.parameter],
            loss_of,
            len(view.pair_images),
            steps=steps(budget.search_steps),
            total=budget.search_steps,
            batch=budget.search_batch,
            rate=_RATE,
            generator=generator,
        )
    images = view.images + candidate.offset().detach()
    return Outcome(
        maps=explained(view.module, view.explainers, images),
        predictions=classes_of(view.module, images),
        cost=Cost(pairs=len(view.pair_images), steps=budget.search_steps, batch=budget.search_batch),
    )


for _full in (False, True):
    attack(
        f"pairs/key_search_{'full' if _full else 'tile'}",
        Knowledge.T2,
        f"Search a key {'of full size' if _full else 'of one tile'} that gives the true maps of the pairs.",
    )(partial(_with_pairs, _full))
