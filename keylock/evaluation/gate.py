"""How sharply a lock opens: leakage against the correlation of a near miss with the key, its strength, and its place.

A lock that opens for a near miss gives an attacker a slope to climb. A good one stays shut until the key is all but
right, and what is below the key's own strength stays shut too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from keylock.errors import InputError
from keylock.evaluation.estimates import estimate_mean
from keylock.evaluation.explaining import added_to_inputs
from keylock.evaluation.measure import run_explainers
from keylock.evaluation.similarity import pearson
from keylock.explainers import Explainer
from keylock.locking.key_patterns import random_signs, repeat_tiles
from keylock.locking.losses import is_constant
from keylock.trigger.keys import Key

__all__ = ["CORRELATIONS", "POINTS", "SHIFTS", "STRENGTHS", "GateCurve", "GatePoint", "gate_curve", "near_miss"]

CORRELATIONS = (0.0, 0.25, 0.5, 0.75, 0.875, 1.0)
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
SHIFTS = ((0, 1), (1, 0), (1, 1), (0, 4), (4, 0))
POINTS = len(CORRELATIONS) + len(STRENGTHS) + len(SHIFTS)
"""How many points a gate curve has for each explainer."""

Sweep = Literal["correlation", "strength", "shift"]


@dataclass(frozen=True)
class GatePoint:
    """Leakage at one place of the curve.

    Attributes:
        explainer: Name of the explainer.
        sweep: What is varied.
        at: Its value: the expected correlation with the key in [0, 1], the factor of the key's strength, or the shift
            down and right in pixels.
        mean: Mean correlation with the reference map, over images and draws.
        low: Lower end of its 95 % interval over images.
        high: Upper end.
        largest: The largest mean over images of a single draw.
        draws: How many near misses were drawn.
    """

    explainer: str
    sweep: Sweep
    at: float | tuple[int, int]
    mean: float
    low: float
    high: float
    largest: float
    draws: int


@dataclass(frozen=True)
class GateCurve:
    """A gate, measured.

    Attributes:
        points: In the order they were measured.
        chance: For each explainer the correlation of reference maps of two different images.
        images: How many images it was measured on.
    """

    points: tuple[GatePoint, ...]
    chance: Mapping[str, float]
    images: int

    def of(self, sweep: Sweep, explainer: str) -> tuple[GatePoint, ...]:
        """Return the points of one curve."""
        return tuple(point for point in self.points if (point.sweep, point.explainer) == (sweep, explainer))

    def as_dict(self) -> dict[str, Any]:
        """Return what a JSON file keeps."""
        return {"images": self.images, "chance": dict(self.chance), "points": [asdict(point) for point in self.points]}


def near_miss(key: Key, correlation: float, *, generator: torch.Generator) -> Tensor:
    """Draw a key of the same kind and strength that shares part of a key's signs.

    Args:
        key: The key.
        correlation: Expected correlation with it, in [0, 1]: every sign of the tile is flipped with the probability
            (1 - correlation) / 2. The correlation of one draw scatters around it, the more the smaller the tile.
        generator: On the CPU.

    Returns:
        An offset on preprocessed images, (channels, height, width).

    Raises:
        InputError: The correlation is out of range.
    """
    if not 0 <= correlation <= 1:
        raise InputError(f"the correlation of a near miss lies between 0 and 1, not at {correlation}")
    channels, height, width = key.shape
    signs = random_signs(1, channels, key.tile, generator=generator, flipped=(1 - correlation) / 2)
    return torch.from_numpy(key.reveal()) * repeat_tiles(signs, (height, width)).squeeze(0)


def gate_curve(
    module: nn.Module,
    reference: nn.Module,
    key: Key,
    explainers: Sequence[Explainer],
    images: Tensor,
    *,
    generator: torch.Generator,
    correlations: Sequence[float] = CORRELATIONS,
    strengths: Sequence[float] = STRENGTHS,
    shifts: Sequence[tuple[int, int]] = SHIFTS,
    draws: int = 4,
    on_point: Callable[[GatePoint], None] = lambda _point: None,
) -> GateCurve:
    """Measure how much near misses of the key show.

    Args:
        module: The locked classifier.
        reference: The classifier before locking.
        key: The key.
        explainers: What to measure; their names differ.
        images: Preprocessed images (count, channels, height, width), two at least, on the device of the models.
        generator: Draws the near misses; on the CPU.
        correlations: Where to measure leakage against correlation with the key, each in [0, 1].
        strengths: Where to measure it against strength, as factors of the key's own.
        shifts: Shifts of the key down and right, in pixels; what leaves the image comes in again on the other side.
        draws: Near misses at each correlation below 1, at least 1.
        on_point: Hears about every point: one for each explainer at each correlation, strength and shift.

    Raises:
        InputError: There are too few images or draws, or a correlation is out of range.
    """
    if draws < 1 or len(images) < 2:
        raise InputError(f"{draws} draws on {len(images)} images give no curve: take at least 1 draw and 2 images")
    truths = run_explainers(reference, explainers, images).maps
    # A constant true map has nothing to show; where all of them are, there is no curve.
    explainers = [explainer for explainer in explainers if not is_constant(truths[explainer.name]).all()]
    points = []
    for sweep, at, offsets in _tries(key, correlations, strengths, shifts, draws, generator):
        found = [_maps_at(offset, module, explainers, images) for offset in offsets] if explainers else []
        for explainer in explainers:
            rows = [maps[explainer.name] for maps in found]
            truth = truths[explainer.name]
            similar = torch.stack([pearson(maps, truth) for maps in rows])[:, ~is_constant(truth)]
            mean, low, high = (round(number, 5) for number in estimate_mean(similar.mean(dim=0)))
            largest = round(float(similar.mean(dim=1).max()), 5)
            points.append(GatePoint(explainer.name, sweep, at, mean, low, high, largest, len(rows)))
            on_point(points[-1])
    chance = {}
    for explainer in explainers:
        truth = truths[explainer.name]
        alike = pearson(truth.roll(1, dims=0), truth)[~is_constant(truth)]
        chance[explainer.name] = round(float(alike.mean()), 5)
    return GateCurve(tuple(points), chance, len(images))


def _maps_at(
    offset: Tensor, module: nn.Module, explainers: Sequence[Explainer], images: Tensor
) -> Mapping[str, Tensor]:
    """Return the maps (count, h, w) of images with an offset (channels, height, width), by explainer."""
    with added_to_inputs(module, offset):
        return run_explainers(module, explainers, images).maps


def _tries(
    key: Key,
    correlations: Sequence[float],
    strengths: Sequence[float],
    shifts: Sequence[tuple[int, int]],
    draws: int,
    generator: torch.Generator,
) -> Iterator[tuple[Sweep, float | tuple[int, int], list[Tensor]]]:
    """Yield what to try at every place of the curves: offsets (channels, height, width)."""
    offset = torch.from_numpy(key.reveal())
    for correlation in correlations:
        # At correlation 1 nothing is left to draw.
        count = draws if correlation < 1 else 1
        yield "correlation", correlation, [near_miss(key, correlation, generator=generator) for _ in range(count)]
    for strength in strengths:
        yield "strength", strength, [strength * offset]
    for down, right in shifts:
        yield "shift", (down, right), [offset.roll((down, right), dims=(1, 2))]
