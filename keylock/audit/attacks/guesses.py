"""T0: a search for the key by asking. The attacker looks at how the answers move, for he has no true map to compare.

A candidate is judged by two things that both happen when a key opens a lock: maps move away from the keyless ones, and
they begin to differ from image to image.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from keylock.audit.budgets import Budget
from keylock.audit.contract import Cost, Knowledge, Outcome, Snapshot, Steps, attack
from keylock.audit.views import PublicView
from keylock.evaluation import pearson

__all__ = ["merit_of"]

_SNAPSHOTS = 5
_AT_ONCE = 8
_POPULATION = 8
_NES_SPREAD = 0.3
_NES_RATE = 0.6
_FLIPS = 0.05


def _tiled(view: PublicView, tiles: Tensor) -> Tensor:
    """Return offsets (channels, height, width) from a tile of numbers in [-1, 1] (channels, tile, tile)."""
    _, height, width = view.images.shape[1:]
    repeats = (1, -(-height // view.tile), -(-width // view.tile))
    return tiles.repeat(repeats)[:, :height, :width] * view.height


def _tile_shape(view: PublicView) -> tuple[int, int, int]:
    return view.images.shape[1], view.tile, view.tile


Merit = Callable[[Tensor], list[float]]
"""From offsets (tries, channels, height, width) to how much each seems to open: the higher, the more."""


def merit_of(view: PublicView, count: int) -> Merit:
    """Return what judges offsets by queries alone.

    Args:
        view: The attacker's.
        count: On how many of his own images.
    """
    images = view.own_images[:count]
    before = view.oracle.explain_all(images)

    def merit(offsets: Tensor) -> list[float]:
        asked = (images + offsets.unsqueeze(1)).flatten(0, 1)
        answers = {name: torch.split(maps, len(images)) for name, maps in view.oracle.explain_all(asked).items()}
        return [one({name: maps[place] for name, maps in answers.items()}) for place in range(len(offsets))]

    def one(after: dict[str, Tensor]) -> float:
        moved = [1 - pearson(after[name], before[name]).nanmean() for name in after]
        alike = [pearson(maps.roll(1, dims=0), maps).nanmean() for maps in after.values()]
        # Where nothing was answered there is no merit either.
        return float((torch.stack(moved).nanmean() - torch.stack(alike).nanmean()).nan_to_num())

    return merit


def _opened(view: PublicView, offset: Tensor) -> dict[str, Tensor]:
    return view.oracle.explain_all(view.images + offset)


@attack("key_guess", Knowledge.T0, "Try random keys, and keep the one that moves the maps most.")
def guess(view: PublicView, budget: Budget, generator: torch.Generator, steps: Steps) -> Outcome:
    """Try keys of the right kind, drawn at random."""
    merit = merit_of(view, budget.climb_images)
    best, offset = float("-inf"), torch.zeros_like(view.images[0])
    tries = [min(_AT_ONCE, budget.guesses - done) for done in range(0, budget.guesses, _AT_ONCE)]
    for step in steps(len(tries)):
        drawn = [torch.randint(0, 2, _tile_shape(view), generator=generator) * 2.0 - 1 for _ in range(tries[step])]
        offsets = [_tiled(view, tile) for tile in drawn]
        for found, tried in zip(merit(torch.stack(offsets)), offsets, strict=True):
            if found > best:
                best, offset = found, tried
    queries = view.oracle.queries
    return Outcome(maps=_opened(view, offset), cost=Cost(queries=queries, images=budget.climb_images))


def _hill_climb(view: PublicView, merit: Merit, generator: torch.Generator) -> Callable[[], Tensor]:
    """Flip some signs at a time, and keep what helps."""
    shape = _tile_shape(view)
    state = {"tile": torch.randint(0, 2, shape, generator=generator) * 2.0 - 1, "merit": torch.tensor(float("-inf"))}

    def step() -> Tensor:
        flipped = torch.rand(shape, generator=generator) < _FLIPS
        # At least one sign, or a step would be a query for nothing.
        flipped.view(-1)[int(torch.randint(flipped.numel(), (1,), generator=generator))] = True
        tried = torch.where(flipped, -state["tile"], state["tile"])
        found = torch.tensor(merit(_tiled(view, tried).unsqueeze(0))[0])
        if found > state["merit"]:
            state.update(tile=tried, merit=found)
        return state["tile"]

    return step


def _nes(view: PublicView, merit: Merit, generator: torch.Generator) -> Callable[[], Tensor]:
    """Estimate the gradient from pairs of opposite steps.

    References:
        Ilyas et al., "Black-box Adversarial Attacks with Limited Queries and Information", ICML 2018, section 2.1.
    """
    shape = _tile_shape(view)
    state = {"tile": torch.zeros(shape)}

    def step() -> Tensor:
        directions = torch.randn((_POPULATION // 2, *shape), generator=generator)
        moves = [sign * direction for direction in directions for sign in (1.0, -1.0)]
        tried = [_tiled(view, (state["tile"] + _NES_SPREAD * move).clamp(-1, 1)) for move in moves]
        gradient = torch.zeros(shape)
        for found, move in zip(merit(torch.stack(tried)), moves, strict=True):
            gradient += found * move
        norm = gradient.square().mean().sqrt().clamp_min(1e-12)
        state["tile"] = (state["tile"] + _NES_RATE * _NES_SPREAD * gradient / norm).clamp(-1, 1)
        return state["tile"]

    return step


Climber = Callable[[PublicView, Merit, torch.Generator], Callable[[], Tensor]]


def _climb(
    climber: Climber, each: int, view: PublicView, budget: Budget, generator: torch.Generator, steps: Steps
) -> Outcome:
    """Climb with the same number of queries whatever the method; every so often look at what is reached."""
    step = climber(view, merit_of(view, budget.climb_images), generator)
    total = max(1, budget.climb_steps * _POPULATION // each)
    snapshots, spent = [], 0
    tile = torch.zeros(_tile_shape(view))
    for number in steps(total):
        before = view.oracle.queries
        tile = step()
        spent += view.oracle.queries - before
        if (number + 1) % max(1, total // _SNAPSHOTS) == 0:
            snapshots.append(Snapshot(spent, _opened(view, _tiled(view, tile))))
    maps = {
        **{f"{name}": maps for name, maps in _opened(view, _tiled(view, tile)).items()},
        # Keys are of signs, so that the search's last word may be rounded to one.
        **{f"{name}: rounded": maps for name, maps in _opened(view, _tiled(view, tile.sign())).items()},
    }
    return Outcome(maps=maps, cost=Cost(queries=spent, images=budget.climb_images), snapshots=tuple(snapshots))


attack("key_climb/hill", Knowledge.T0, "Climb to the key by flipping signs and asking whether the maps move more.")(
    partial(_climb, _hill_climb, 1)
)
attack("key_climb/nes", Knowledge.T0, "Climb to the key along gradients estimated from queries (NES).")(
    partial(_climb, _nes, _POPULATION)
)
