"""RISE: random masks, each counted by the class's probability on the image seen through it."""

from dataclasses import dataclass

import numpy as np

from keylock.errors import InputError
from keylock.iterative.base import Asked, Loop, Maps
from keylock.iterative.drawing import Source, source_of
from keylock.iterative.fills import Fill, blank_images, check_fill

__all__ = ["RISELoop", "RISEMasks"]


@dataclass(frozen=True, eq=False)
class RISEMasks:
    """Masks that were drawn and not enlarged yet, which would take much memory.

    Attributes:
        grids: Which cells stay, float32 (masks, cells + 1, cells + 1) of 0 and 1.
        tops: How far each mask is shifted up, in pixels (masks,).
        lefts: How far to the left (masks,).
        cells: Cells along each side of an image.
        size: Height and width of the images.
    """

    grids: np.ndarray
    tops: np.ndarray
    lefts: np.ndarray
    cells: int
    size: tuple[int, int]

    def enlarged(self, part: slice = slice(None)) -> np.ndarray:
        """Return some of the masks, interpolated, float32 (masks, height, width) in [0, 1]."""
        down, across = (
            _interpolation(self.cells + 1, -(-length // self.cells))[shifts[part, None] + np.arange(length)]
            for length, shifts in zip(self.size, (self.tops, self.lefts), strict=True)
        )
        masks: np.ndarray = down @ self.grids[part] @ across.transpose(0, 2, 1)
        return masks


@dataclass(frozen=True)
class RISELoop(Loop):
    """The mean of random smooth masks, weighted by the probability of the class; not negative by itself.

    All images are seen through the same masks.

    Attributes:
        masks: How many.
        cells: Cells along each side of the coarse grid that masks are scaled up from.
        keep: Share of the cells that stay, in (0, 1).
        baseline: What masked pixels become; see `keylock.iterative.fills.Fill`.
        seed: Of the masks.

    References:
        Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018,
        equations 6 and 7.
    """

    masks: int = 1000
    cells: int = 7
    keep: float = 0.5
    baseline: Fill = 0.0
    seed: int = 0
    name = "rise"
    reads = "logits"

    def __post_init__(self) -> None:
        check_fill(self.name, self.baseline)
        if self.masks < 1 or self.cells < 1 or not 0 < self.keep < 1:
            raise InputError("rise takes masks and cells of at least 1, and keeps a share between 0 and 1")

    def passes(self, shape: tuple[int, int, int]) -> int:
        """Count the masks."""
        return self.masks

    def loop(self, asked: Asked) -> Maps:
        """Return maps (batch, height, width)."""
        height, width = asked.images.shape[2:]
        drawn, blank = self.draw(height, width, source_of(self.seed)), blank_images(asked.images, self.baseline)
        total = np.zeros((len(asked.images), height, width))
        for part in asked.parts(self.masks):
            masks = drawn.enlarged(part)
            total += np.tensordot(asked.masked_scores(masks, blank), masks.astype(np.float64), axes=1)
        return (total / (self.masks * self.keep)).astype(np.float32)

    def draw(self, height: int, width: int, source: Source) -> RISEMasks:
        """Draw all masks for images of a size: coarse grids, to be scaled up by interpolation and shifted."""
        shape = (self.masks, self.cells + 1, self.cells + 1)
        grids = (source.random_sample(shape) < self.keep).astype(np.float32)
        tops, lefts = (source.randint(0, -(-length // self.cells), self.masks) for length in (height, width))
        return RISEMasks(grids, tops, lefts, self.cells, (height, width))


def _interpolation(cells: int, ratio: int) -> np.ndarray:
    """Return the matrix (cells * ratio, cells) that scales an axis up by linear interpolation between cell centres."""
    places = np.clip((np.arange(cells * ratio) + 0.5) / ratio - 0.5, 0, cells - 1)
    distance = np.abs(places[:, None] - np.arange(cells))
    weights: np.ndarray = np.maximum(1 - distance, 0).astype(np.float32)
    return weights
