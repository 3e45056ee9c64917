"""What a loop is given, and what it must give."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Asked", "GradientSums", "Images", "Logits", "Loop", "Maps", "run_loop", "share_of"]

_ROWS = 256
_VALUES = 2**22
_GRADIENT_VALUES = 2**20
"""Less than for predictions: what a gradient's way back reads again is then more often still in a processor's cache."""

Images = NDArray[np.float32]
Maps = NDArray[np.float32]
Rows = NDArray[np.intp]
Classes = NDArray[np.int64]

Logits = Callable[[Images, Rows], NDArray[np.float32]]
"""From variations (rows, channels, height, width) and the number of the image each one was made from (rows,), which
decides on the key, to logits (rows, classes)."""

GradientSums = Callable[[Images, Rows, Classes], NDArray[np.float32]]
"""The same with a class for each row, to sums of the gradients of its logit for the row, with their signs: one sum for
each image that rows were made from, in the order of their numbers (images, channels, height, width)."""


def share_of(of: Rows) -> NDArray[np.float32]:
    """Return the matrix whose product with rows is their sum for each image: 1 where a row was made from an image.

    Args:
        of: The number of the image that each row was made from (rows,).

    Returns:
        One row for each image that there is, in the order of their numbers, float32 (images, rows).
    """
    share: NDArray[np.float32] = (np.unique(of)[:, None] == of).astype(np.float32)
    return share


@dataclass(frozen=True)
class Asked:
    """Images to explain, and whom to ask about variations of them.

    Attributes:
        images: Preprocessed images, float32 (batch, channels, height, width).
        targets: Class indices (batch,), none negative.
        logits: Those of the images themselves (batch, classes).
        answer: From variations and the numbers of their images to logits, or sums of gradients, as `Loop.reads` says.
    """

    images: Images
    targets: Classes
    logits: NDArray[np.float32]
    answer: Callable[[Images, Rows], NDArray[np.float32]]

    def parts(self, count: int) -> Iterator[slice]:
        """Yield slices over so many variations, such that one slice of them on all images is a batch that fits."""
        step = max(1, self._rows(_VALUES) // len(self.images))
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    def steps(self, count: int) -> Iterator[slice]:
        """Yield slices over so many variations, about equally long, such that one of them on one image fits."""
        pieces = -(-count // self._rows(_GRADIENT_VALUES))
        step = -(-count // pieces)
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    def groups(self, count: int) -> Iterator[slice]:
        """Yield slices over the images, such that so many variations of those in one slice fit."""
        step = max(1, self._rows(_GRADIENT_VALUES) // count)
        for start in range(0, len(self.images), step):
            yield slice(start, min(start + step, len(self.images)))

    def summed(self, group: slice, variations: Images) -> NDArray[np.float32]:
        """Ask for the sums of the gradients of a group of images at variations (images, count, ...): (images, ...)."""
        of = np.repeat(np.arange(group.start, group.stop), variations.shape[1])
        return self.answer(variations.reshape(-1, *variations.shape[2:]), of)

    def about(self, variations: Images) -> NDArray[np.float32]:
        """Ask about variations (batch, count, channels, height, width): the answers (batch, count, ...)."""
        batch, count = variations.shape[:2]
        answers = self.answer(variations.reshape(-1, *variations.shape[2:]), np.repeat(np.arange(batch), count))
        return answers.reshape(batch, count, *answers.shape[1:])

    def _rows(self, values: int) -> int:
        size: int = self.images[0].size
        return max(1, min(_ROWS, values // max(1, size)))

    def probabilities(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        """Return the probability of each image's class in logits (batch, ..., classes): float64 (batch, ...)."""
        wide = logits.astype(np.float64)
        powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
        targets = self.targets.reshape(-1, *[1] * (wide.ndim - 1))
        chosen = np.take_along_axis(powers, targets, axis=-1)[..., 0]
        return chosen / powers.sum(axis=-1)  # type: ignore[no-any-return]

    def masked_scores(self, masks: NDArray[np.float32], blank: Images) -> NDArray[np.float64]:
        """Return the probability of each image's class under each mask: float64 (batch, masks).

        Args:
            masks: In [0, 1], 1 where the image stays: (masks, height, width), or one set for each image (batch, masks,
                height, width).
            blank: What shows where it does not (batch, channels, height, width).
        """
        per_image = masks if masks.ndim == 4 else masks[None]
        shown = blank[:, None] + per_image[:, :, None] * (self.images - blank)[:, None]
        return self.probabilities(self.about(shown.astype(np.float32, copy=False)))


class Loop(ABC):
    """An explainer that asks about many variations of an image. Every subclass is a frozen dataclass.

    Attributes:
        name: The name of the explainer.
        reads: What it asks for: logits of every variation, or gradients, of which it needs the sums alone.
    """

    name: ClassVar[str]
    reads: ClassVar[Literal["logits", "gradient"]]

    @abstractmethod
    def passes(self, shape: tuple[int, int, int]) -> int:
        """Return how many variations of one image (channels, height, width) are asked about, at most."""

    @abstractmethod
    def loop(self, asked: Asked) -> Maps:
        """Return the maps, float32 (batch, height, width), none negative."""


def run_loop(
    loop: Loop, images: Images, targets: Classes, *, logits: Logits, gradient_sums: GradientSums | None = None
) -> tuple[NDArray[np.float32], Maps]:
    """Explain images by a loop.

    Args:
        loop: What to run.
        images: Preprocessed images, float32 (batch, channels, height, width).
        targets: Class indices, int64 (batch,); -1 stands for the predicted class.
        logits: Answers with logits.
        gradient_sums: Answers with sums of gradients; needed by loops that read them.

    Returns:
        The logits of the images (batch, classes), and the maps (batch, height, width).
    """
    found = logits(images, np.arange(len(images)))
    chosen = np.where(targets < 0, found.argmax(axis=1), targets)
    answer = logits
    if loop.reads == "gradient":
        assert gradient_sums is not None, "a loop that reads gradients is given them"  # noqa: S101
        whole = gradient_sums

        def answer(rows: Images, of: Rows) -> NDArray[np.float32]:
            return whole(rows, of, chosen[of])

    return found, loop.loop(Asked(images, chosen, found, answer))
