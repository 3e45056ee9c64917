"""T2: images with their true maps in hand, as a licensed caller gets them; nothing is promised against these."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.audit.attacks.key_search import smooth_where_needed
from keylock.audit.attacks.objectives import openable
from keylock.audit.budgets import Budget
from keylock.audit.contract import ALL_SUITES, LONG_SUITES, Cost, Knowledge, Outcome, Steps, attack
from keylock.audit.learning import classes_of, descend, explained, unlocked_copy
from keylock.audit.views import PairsView
from keylock.explainers import explain_many
from keylock.locking.losses import correlation

__all__: list[str] = []

_WIDTH = 24
_RATE = 3e-3
_TUNING_RATE = 3e-3
_FEW = (1, 4, 16)


def _all_one_size(maps: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
    """Return maps of all explainers as channels (count, explainers, *size), each of mean 1."""
    scaled = [found / found.mean(dim=(1, 2), keepdim=True).clamp_min(1e-12) for found in maps.values()]
    return torch.cat([F.interpolate(one.unsqueeze(1).float(), size=size, mode="bilinear") for one in scaled], dim=1)


def _regressor(channels: int, generator: torch.Generator) -> nn.Sequential:
    network = nn.Sequential(
        nn.Conv2d(channels, _WIDTH, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(_WIDTH, _WIDTH, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(_WIDTH, 1, 3, padding=1),
    )
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            size = (2 / layer.weight[0].numel()) ** 0.5
            with torch.no_grad():
                layer.weight.copy_(size * torch.randn(layer.weight.shape, generator=generator))
                layer.bias.zero_()  # type: ignore[union-attr]
    return network


@attack("pairs/regression", Knowledge.T2, "Learn the way from image and keyless maps to the true map.")
def regression(view: PairsView, budget: Budget, generator: torch.Generator, steps: Steps) -> Outcome:
    """Train a small network for each explainer on the pairs, and apply it to the keyless maps of other images."""
    size = (view.images.shape[2], view.images.shape[3])

    def inputs(images: Tensor) -> Tensor:
        return torch.cat([images, _all_one_size(explained(view.module, view.explainers, images), size)], dim=1)

    known, asked = inputs(view.pair_images), inputs(view.images)
    found = {name: _learn(known, wanted, asked, budget, generator, steps) for name, wanted in view.pair_maps.items()}
    return Outcome(maps=found, cost=Cost(pairs=len(known), steps=budget.steps, batch=budget.batch))


def _learn(
    known: Tensor, wanted: Tensor, asked: Tensor, budget: Budget, generator: torch.Generator, steps: Steps
) -> Tensor:
    """Fit a network to known inputs (pairs, channels, height, width) and maps, and return the maps of others."""
    network, shape = _regressor(known.shape[1], generator), (wanted.shape[1], wanted.shape[2])

    def maps_of(features: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(network(features), shape).squeeze(1)

    descend(
        network.parameters(),
        lambda rows: 1 - correlation(maps_of(known[rows]), wanted[rows]).mean(),
        len(known),
        steps=steps(budget.steps),
        total=budget.steps,
        batch=budget.batch,
        rate=_RATE,
        generator=generator,
    )
    with torch.no_grad():
        return maps_of(asked)


@attack("pairs/average", Knowledge.T2, "Show for every image the mean true map of its class.")
def average(view: PairsView, _budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    """Average the true maps of the pairs of a class; a class without any gets the mean of all."""
    own, asked = classes_of(view.module, view.pair_images), classes_of(view.module, view.images)
    found = {}
    for name, maps in view.pair_maps.items():
        unit = maps / maps.mean(dim=(1, 2), keepdim=True).clamp_min(1e-12)
        means = [unit[own == label].mean(dim=0) if bool((own == label).any()) else unit.mean(dim=0) for label in asked]
        found[name] = torch.stack(means)
    return Outcome(maps=found, cost=Cost(pairs=len(own)))


def _tune(most: int | None, view: PairsView, budget: Budget, generator: torch.Generator, steps: Steps) -> Outcome:
    """Train towards the true maps of the first pairs, and the published predictions."""
    explainers = openable(view.explainers, "move")
    classes = classes_of(view.module, view.pair_images[:most])
    model = unlocked_copy(view.module)

    def loss_of(rows: Tensor) -> Tensor:
        logits, maps = explain_many(
            model, tuple(explainers.values()), view.pair_images[rows], classes[rows], create_graph=True
        )
        found = [1 - correlation(maps[name], view.pair_maps[name][rows]).mean() for name in explainers]
        return torch.stack(found).mean() + F.cross_entropy(logits.float(), classes[rows])

    with smooth_where_needed(model, explainers):
        descend(
            model.parameters(),
            loss_of,
            len(classes),
            steps=steps(budget.search_steps),
            total=budget.search_steps,
            batch=budget.search_batch,
            rate=_TUNING_RATE,
            generator=generator,
        )
    model.requires_grad_(requires_grad=False)
    return Outcome(
        maps=explained(model, view.explainers, view.images),
        predictions=classes_of(model, view.images),
        cost=Cost(pairs=len(classes), steps=budget.search_steps, batch=budget.search_batch),
    )


for _most in (*_FEW, None):
    _pairs = "the pairs" if _most is None else "1 pair" if _most == 1 else f"{_most} pairs"
    attack(
        "pairs/tuning" if _most is None else f"pairs/tuning_{_most}",
        Knowledge.T2,
        f"Fine-tune the published weights until they show the true maps of {_pairs}.",
        suites=LONG_SUITES if _most in {1, 16} else ALL_SUITES,
    )(partial(_tune, _most))


@attack(
    "pairs/other_key", Knowledge.T2, "Show a program that has the bundle a picture with the trigger of another key."
)
def other_key(view: PairsView, _budget: Budget, generator: torch.Generator, _steps: Steps) -> Outcome:
    """Stamp the images with a key of the same height and tile, as another bundle of the vendor has."""
    channels, height, width = view.images.shape[1:]
    repeats = (1, -(-height // view.tile), -(-width // view.tile))
    signs = torch.randint(0, 2, (channels, view.tile, view.tile), generator=generator) * 2.0 - 1
    stamped = view.images + signs.repeat(repeats)[:, :height, :width] * view.height
    return Outcome(maps=dict(view.device(stamped)), cost=Cost(images=len(stamped)))
