"""What is drawn for a batch, and the parts that a step computes it in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

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
        masked_rows: Which of the images these are.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor | None
    rows: Mapping[str, Tensor]
    masked: tuple[Tensor, Tensor] | None
    masked_rows: slice

    @classmethod
    def of(cls, rows: slice, draws: Draws, images: Tensor, labels: Tensor, indices: Tensor | None) -> Self:
        """Cut some rows out of a batch; of the masked images, those that belong to them."""
        half = slice((rows.start + 1) // 2, (rows.stop + 1) // 2)
        return cls(
            images[rows],
            labels[rows],
            None if indices is None else indices[rows],
            {name: drawn[rows] for name, drawn in draws.rows.items()},
            None if draws.masked is None else (draws.masked[0][half], draws.masked[1][half]),
            slice(rows.start % 2, None, 2),
        )
