"""RISE: random masks, each counted by the class's probability on the image seen through it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from keylock.errors import InputError
from keylock.explainers.base import Classifier, FromPredictions
from keylock.explainers.predictions import Fill, blank_images, check_fill, chunks, masked_scores
from keylock.explainers.random_source import draws_from

__all__ = ["RISE"]


@dataclass(frozen=True)
class RISE(FromPredictions):
    """The mean of random smooth masks, weighted by the probability of the class; not negative by itself.

    All images of a batch are seen through the same masks.

    Attributes:
        masks: How many.
        cells: Cells along each side of the coarse grid that masks are scaled up from.
        keep: Share of the cells that stay, in (0, 1).
        baseline: What masked pixels become; see `keylock.explainers.predictions.Fill`.
        seed: Of the masks, where no generator is given.

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

    def __post_init__(self) -> None:
        check_fill(self.name, self.baseline)
        if self.masks < 1 or self.cells < 1 or not 0 < self.keep < 1:
            raise InputError("rise takes masks and cells of at least 1, and keeps a share between 0 and 1")

    def maps_from(
        self, predict: Classifier, images: Tensor, targets: Tensor, *, generator: torch.Generator | None
    ) -> Tensor:
        """Return maps (batch, height, width)."""
        source = draws_from(generator, self.seed)
        blank = blank_images(images, self.baseline)
        total = images.new_zeros((len(images), *images.shape[2:]), dtype=torch.float64)
        for part in chunks(self.masks, len(images)):
            masks = self.draw_masks(part.stop - part.start, images.shape[2], images.shape[3], source).to(images.device)
            scores = masked_scores(predict, images, targets, masks, blank)
            total += torch.einsum("bm,mhw->bhw", scores, masks.double())
        return (total / (self.masks * self.keep)).float()

    def draw_masks(self, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Draw masks (count, height, width) in [0, 1]: coarse grids, scaled up by interpolation and shifted."""
        rows, columns = -(-height // self.cells), -(-width // self.cells)
        grids = torch.rand(count, 1, self.cells + 1, self.cells + 1, generator=generator, device=generator.device)
        large = F.interpolate(
            (grids < self.keep).float(),
            size=((self.cells + 1) * rows, (self.cells + 1) * columns),
            mode="bilinear",
            align_corners=False,
        )
        tops = torch.randint(0, rows, (count,), generator=generator, device=generator.device).tolist()
        lefts = torch.randint(0, columns, (count,), generator=generator, device=generator.device).tolist()
        return torch.stack(
            [
                mask[0, top : top + height, left : left + width]
                for mask, top, left in zip(large, tops, lefts, strict=True)
            ]
        )
