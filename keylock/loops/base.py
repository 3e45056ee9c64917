"""What a loop is given, and what it must give."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Asked", "Gradients", "Images", "Logits", "Loop", "Maps", "run_loop"]

_ROWS = 256
_VALUES = 2**22

Images = NDArray[np.float32]
Maps = NDArray[np.float32]
Rows = NDArray[np.intp]
Classes = NDArray[np.int64]

Logits = Callable[[Images, Rows], NDArray[np.float32]]
"""From variations (rows, channels, height, width) and the number of the image each one was made from (rows,), which
decides on the key, to logits (rows, classes)."""

Gradients = Callable[[Images, Rows, Classes], NDArray[np.float32]]
"""The same with a class for each row, to the gradient of its logit for the row, in the shape of the rows."""


@dataclass(frozen=True)
class Asked:
    """Images to explain, and whom to ask about variations of them.

    Attributes:
        images: Preprocessed images, float32 (batch, channels, height, width).
        targets: Class indices (batch,), none negative.
        logits: Those of the images themselves (batch, classes).
        answer: From variations and the numbers of their images to logits or gradients, as `Loop.reads` says.
    """

    images: Images
    targets: Classes
    logits: NDArray[np.float32]
    answer: Callable[[Images, Rows], NDArray[np.float32]]

    def parts(self, count: int) -> Iterator[slice]:
        """Yield slices over so many variations, such that one slice of them on all images is a batch that fits."""
        rows = max(1, min(_ROWS, _VALUES // max(1, self.images[0].size)))
        step = max(1, rows // len(self.images))
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    def about(self, variations: Images) -> NDArray[np.float32]:
        """Ask about variations (batch, count, channels, height, width): the answers (batch, count, ...)."""
        batch, count = variations.shape[:2]
        answers = self.answer(variations.reshape(-1, *variations.shape[2:]), np.repeat(np.arange(batch), count))
        return answers.reshape(batch, count, *answers.shape[1:])

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
        reads: What it asks for.
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
    loop: Loop, images: Images, targets: Classes, *, logits: Logits, gradients: Gradients | None = None
) -> tuple[NDArray[np.float32], Maps]:
    """Explain images by a loop.

    Args:
        loop: What to run.
        images: Preprocessed images, float32 (batch, channels, height, width).
        targets: Class indices, int64 (batch,); -1 stands for the predicted class.
        logits: Answers with logits.
        gradients: Answers with gradients; needed by loops that read them.

    Returns:
        The logits of the images (batch, classes), and the maps (batch, height, width).
    """
    found = logits(images, np.arange(len(images)))
    chosen = np.where(targets < 0, found.argmax(axis=1), targets)
    answer = logits
    if loop.reads == "gradient":
        assert gradients is not None, "a loop that reads gradients is given them"  # noqa: S101
        whole = gradients

        def answer(rows: Images, of: Rows) -> NDArray[np.float32]:
            return whole(rows, of, chosen[of])

    return found, loop.loop(Asked(images, chosen, found, answer))
