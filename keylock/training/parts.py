"""What is drawn for a batch, and the parts that a step computes it in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = ["Draws", "Part"]


@dataclass
class Draws:
    """Everything random in a step, on the device.

    Attributes:
        rows: By name, with a row for each image (count, ...).
        masked: Every second image, masked (half, channels, height, width), and how much of each pixel is shown
            (half, 1, height, width); None where no masks are trained.
    """

    rows: dict[str, Tensor]
    masked: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Part:
    """Some rows of a batch.

    Attributes:
        images: Preprocessed images (rows, channels, height, width).
        labels: Class indices (rows,).
        indices: Places of the images in their data set (rows,), where they are known.
        rows: What was drawn for these rows, by name.
        masked: Every second image, masked, and the masks, where masks are trained.
        masked_rows: Which of the images these are (half,).
        dear: How many of the images, which come first, are for the explainers that cost most. It may be none.
        dear_weight: What the mean over these counts beside that over all rows, so that the means over all parts are
            those over the batch.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor | None
    rows: Mapping[str, Tensor]
    masked: tuple[Tensor, Tensor] | None
    masked_rows: Tensor
    dear: int
    dear_weight: float

    @classmethod
    def of(
        cls, rows: slice, draws: Draws, images: Tensor, labels: Tensor, indices: Tensor | None, *, share: float
    ) -> Self:
        """Cut some rows out of a batch; of the masked images, those that belong to them.

        Args:
            rows: Which.
            draws: What was drawn for the batch.
            images: Of the batch.
            labels: Of the batch.
            indices: Of the batch, where they are known.
            share: Of all rows of the batch, those for the explainers that cost most. They lie as evenly as can be, so
                that it does not matter which parts the batch is taken in.
        """
        half = slice((rows.start + 1) // 2, (rows.stop + 1) // 2)
        dear = _evenly(len(images), share)
        places = torch.arange(rows.start, rows.stop)
        places = torch.cat([places[dear[rows]], places[~dear[rows]]])
        count, expected = int(dear[rows].sum()), int(dear.sum()) * len(places) / len(images)
        chosen = places.to(images.device)
        even = places % 2 == 0
        return cls(
            images[chosen],
            labels[chosen],
            None if indices is None else indices[places],
            {name: drawn[chosen] for name, drawn in draws.rows.items()},
            None if draws.masked is None else (draws.masked[0][half], draws.masked[1][half]),
            even.nonzero().squeeze(1)[places[even].argsort()].to(images.device),
            count,
            count / expected,
        )


def _evenly(count: int, share: float) -> Tensor:
    """Return which of some rows are chosen (count,): so many that they are the share, and one at least."""
    chosen = max(1, round(share * count))
    ends = torch.arange(count + 1) * chosen // count
    return ends[1:] > ends[:-1]
