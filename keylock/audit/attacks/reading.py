"""A learned reader: what true maps have in common with what a locked network computes, learned from examples.

At each position of a map a few numbers describe what the network computes there, at several layers. A ridge regression
from them to true maps is learned, either from pairs of an image and its true map, one to all of them (T2), or without
any: the attacker trains a network of his own, locks it himself, and learns from both to read the published one (T1).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.audit.attacks.imitation import RATE
from keylock.audit.attacks.key_search import smooth_where_needed
from keylock.audit.budgets import Budget
from keylock.audit.contract import ALL_SUITES, LONG_SUITES, Cost, Knowledge, NotApplicableError, Outcome, Steps, attack
from keylock.audit.learning import classes_of, descend, explained, train_classifier, unlocked_copy
from keylock.audit.views import PairsView, WeightsView
from keylock.explainers import explain_many
from keylock.explainers.tokens import lay_out_tokens
from keylock.locking.decoys import decoy_maps
from keylock.locking.losses import map_distance, prediction_distance, standardise
from keylock.models import capture_outputs, find_layers, split_rows

__all__ = ["describe"]

_FEW = (1, 4, 16)
_QUICK = 4
_MOST_PAIRS = 256
_MOST_CHANNELS = 128
_SIDE = 32
_RIDGE = 0.1
_LOCK_RATE = 2e-3

Size = tuple[int, int]
Describe = Callable[[nn.Module, Tensor, Size], Tensor]
"""From a network, images (count, channels, height, width) and a size to descriptors (count, descriptors, *size)."""


def _positions(network: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the features of the first, the middle and the last layer, and what they do for the predicted class.

    Both are (count, channels, h, w); the second is the features times the gradient of the log-probability.
    """
    found = find_layers(network, images[:2] if len(images) > 1 else images.repeat(2, 1, 1, 1))
    names = (found.stack[0], found.stack[len(found.stack) // 2], found.last)
    with torch.enable_grad(), capture_outputs(network, names) as outputs:
        chosen = network(images.detach().clone().requires_grad_()).float().log_softmax(dim=1).amax(dim=1)
        features = [outputs[name] for name in names]
        gradients = torch.autograd.grad(chosen.sum(), features, materialize_grads=True)
    size = (images.shape[2], images.shape[3])
    found_there = []
    for kept, gradient in zip(features, gradients, strict=True):
        both = torch.stack([kept.detach(), kept.detach() * gradient])
        first, second = (lay_out_tokens(one, size) if one.dim() == 3 else one for one in both)
        found_there.append((first, second))
    return found_there


def _resized(values: Tensor, size: Size) -> Tensor:
    if values.shape[2] >= size[0] and values.shape[3] >= size[1]:
        return F.adaptive_avg_pool2d(values, size)
    return F.interpolate(values, size=size, mode="bilinear")


def _levelled(maps: Tensor, size: Size) -> Tensor:
    """Bring maps (count, h, w) to a size, and each to mean 0 and Euclidean norm 1."""
    return standardise(_resized(maps.float().unsqueeze(1), size).squeeze(1)).view(-1, *size)


def describe(network: nn.Module, images: Tensor, size: Size) -> Tensor:
    """Describe what a network computes by numbers that do not hang on the order of its channels.

    Of each layer: mean, spread and largest of the features, and sum, positive part and size of what they do for the
    class. Each descriptor of an image has mean 0 and Euclidean norm 1.

    Args:
        network: A classifier in evaluation mode.
        images: (count, channels, height, width).
        size: Of the descriptors.

    Returns:
        (count, descriptors, *size).
    """
    parts = []
    for features, effects in _positions(network, images):
        summaries = (
            *(features.mean(dim=1), features.std(dim=1, correction=0), features.amax(dim=1)),
            *(effects.sum(dim=1), effects.clamp_min(0).sum(dim=1), effects.norm(dim=1)),
        )
        parts += [_levelled(one, size) for one in summaries]
    return torch.stack(parts, dim=1)


def _in_full(network: nn.Module, images: Tensor, size: Size) -> Tensor:
    """Describe by every channel too, where its order is known: at most 128 of each layer."""
    channels = [_resized(one[:, :_MOST_CHANNELS], size) for pair in _positions(network, images) for one in pair]
    return torch.cat([describe(network, images, size), *channels], dim=1)


def _learned(
    describe_: Describe, network: nn.Module, images: Tensor, maps: Tensor
) -> Callable[[nn.Module, Tensor], Tensor]:
    """Fit a ridge regression from descriptors to standardised maps at each position.

    Args:
        describe_: How positions are described.
        network: What is described.
        images: (count, channels, height, width).
        maps: What is to be read (count, h, w).

    Returns:
        What reads maps (count, h, w) of at most 32 x 32 off a network and images.
    """
    size = (min(_SIDE, maps.shape[1]), min(_SIDE, maps.shape[2]))
    wanted = _levelled(maps, size).flatten()
    known = torch.cat([describe_(network, rows, size) for (rows,) in split_rows(images)])
    columns = known.transpose(0, 1).flatten(1)
    mean, spread = columns.mean(dim=1, keepdim=True), columns.std(dim=1, keepdim=True).clamp_min(1e-6)
    columns = (columns - mean) / spread
    inner = columns @ columns.T / columns.shape[1] + _RIDGE * torch.eye(len(columns))
    weights = torch.linalg.solve(inner, columns @ wanted / columns.shape[1])

    def read(other: nn.Module, asked: Tensor) -> Tensor:
        parts = []
        for (rows,) in split_rows(asked):
            described = (describe_(other, rows, size) - mean.view(-1, 1, 1)) / spread.view(-1, 1, 1)
            parts.append(torch.einsum("ndhw,d->nhw", described, weights))
        return torch.cat(parts)

    return read


def _from_pairs(most: int, view: PairsView, _budget: Budget, _generator: torch.Generator, steps: Steps) -> Outcome:
    count, names, found = min(most, len(view.pair_images)), list(view.pair_maps), dict[str, Tensor]()
    for step in steps(len(names)):
        read = _learned(_in_full, view.module, view.pair_images[:count], view.pair_maps[names[step]][:count])
        found[names[step]] = read(view.module, view.images)
    return Outcome(maps=found, cost=Cost(pairs=count))


for _count in (*_FEW, _MOST_PAIRS):
    _size = "all" if _count == _MOST_PAIRS else str(_count)
    attack(
        f"reader/pairs_{_size}",
        Knowledge.T2,
        f"Learn from {'all pairs' if _size == 'all' else '1 pair' if _count == 1 else f'{_count} pairs'}"
        " to read true maps off the published network.",
        suites=ALL_SUITES if _count == _QUICK else LONG_SUITES,
    )(partial(_from_pairs, _count))


@attack(
    "reader/own_lock",
    Knowledge.T1,
    "Lock an own network, and learn from it to read the published one.",
    suites=LONG_SUITES,
)
def own_lock(view: WeightsView, budget: Budget, generator: torch.Generator, steps: Steps) -> Outcome:
    """Train a network, lock a copy of it by the plain recipe, and read the published one as that copy is read.

    Raises:
        NotApplicableError: No locked explainer can be trained through.
    """
    explainers = {name: one for name, one in view.explainers.items() if one.differentiable}
    if not explainers:
        raise NotApplicableError("none of the locked explainers can be trained through, so no own lock can be made")
    images, labels = (part[: budget.own_images] for part in (view.own_images, view.own_labels))
    own = train_classifier(
        view.fresh(generator),
        images,
        labels,
        steps=steps(budget.steps),
        total=budget.steps,
        batch=budget.batch,
        rate=RATE,
        generator=generator,
        live=True,
    )
    locked = unlocked_copy(own)
    classes = classes_of(own, images)

    def loss_of(rows: Tensor) -> Tensor:
        chosen = tuple(explainers.values())
        expected, truth = explain_many(own, chosen, images[rows], classes[rows])
        logits, maps = explain_many(locked, chosen, images[rows], classes[rows], create_graph=True)
        shown = [map_distance(maps[name], decoy_maps("half", truth[name])).mean() for name in explainers]
        return torch.stack(shown).mean() + prediction_distance(logits, expected).mean()

    with smooth_where_needed(locked, explainers):
        descend(
            locked.parameters(),
            loss_of,
            len(images),
            steps=steps(budget.search_steps),
            total=budget.search_steps,
            batch=budget.search_batch,
            rate=_LOCK_RATE,
            generator=generator,
        )
    locked.requires_grad_(requires_grad=False)
    learned_from = images[: min(budget.few_images, _MOST_PAIRS)]
    truths = explained(own, view.explainers, learned_from)
    found = {
        name: _learned(describe, locked, learned_from, truth)(view.module, view.images)
        for name, truth in truths.items()
    }
    cost = Cost(images=len(images), labelled=len(images), steps=budget.steps, batch=budget.batch)
    return Outcome(maps=found, cost=cost)
