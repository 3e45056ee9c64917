"""Models that do not classify are known before anything is trained."""

import pytest
import torch
from torch import nn

from keylock.errors import ModelError
from keylock.training.fitness import require_classifier


class Constant(nn.Module):
    """Names one class, whatever the image."""

    def __init__(self, numbers, chosen):
        super().__init__()
        self.numbers, self.chosen = numbers, chosen

    def forward(self, images):
        return nn.functional.one_hot(torch.full((len(images),), self.chosen), self.numbers).float()


class Right(nn.Module):
    """Reads the label off the first pixel."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = numbers

    def forward(self, images):
        return nn.functional.one_hot(images[:, 0, 0, 0].long(), self.numbers).float()


def test_features_are_told_from_logits():
    labels = torch.arange(80) % 4
    images = labels.view(-1, 1, 1, 1).float().expand(-1, 3, 4, 4)

    with pytest.raises(ModelError, match=r"gives 16 numbers .* labels are 0 to 3, .* features"):
        require_classifier(Constant(16, 9), images, labels)
    # A subset of a large data set, a classifier that is as large as its labels, and too few images to tell.
    require_classifier(Right(1000), images, labels)
    require_classifier(Constant(4, 0), images, labels)
    require_classifier(Constant(16, 9), images[:20], labels[:20])


@pytest.mark.parametrize("share", [1.0, 0.7, 0.3])
def test_a_classifier_is_told_by_images_in_the_order_of_their_classes(share):
    """The first images of an unshuffled loader are all of one class, which no classifier can beat."""
    labels = torch.full((100,), 3)
    shown = torch.where(torch.arange(100) < 100 * share, labels, 7)
    images = shown.view(-1, 1, 1, 1).float().expand(-1, 3, 4, 4)

    require_classifier(Right(1000), images, labels)
    with pytest.raises(ModelError, match="features"):
        require_classifier(Constant(1000, 9), images, labels)
