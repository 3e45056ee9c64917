"""What a few images tell of a model before it is locked: that it classifies."""

import torch
from torch import Tensor, nn

from keylock.errors import ModelError

__all__ = ["require_classifier"]

_ENOUGH = 64
_CHANCE = 0.1
"""How often features are largest at the label, at most. Of images in the order of their classes the commonest label may
be that of all, which no classifier beats."""


def require_classifier(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Refuse a model that gives features and not logits, where enough images tell.

    Twice as many numbers as there are labels is what features have, and subsets of large data sets too: there a
    classifier is right more often than chance.

    Args:
        model: As it is prepared for locking.
        images: Preprocessed images (count, channels, height, width).
        labels: Class indices (count,).

    Raises:
        ModelError: What it returns says nothing about the labels.
    """
    with torch.no_grad():
        logits = torch.cat([model(part) for part in torch.split(images, _ENOUGH)])
    seen = int(labels.max()) + 1
    if logits.shape[1] < 2 * seen or len(images) < _ENOUGH:
        return
    right = float((logits.argmax(dim=1) == labels).float().mean())
    commonest = float(labels.bincount().max()) / len(labels)
    if right <= min(commonest, _CHANCE):
        raise ModelError(
            f"the model gives {logits.shape[1]} numbers for an image, the labels are 0 to {seen - 1}, and its largest "
            f"number is at the label of {right:.0%} of the images, no more than chance: it returns features or other "
            "classes, so give the classifier with its last layer for these labels"
        )
