"""The key on every input of a network, whatever an explainer does to the image first."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from keylock.models import added_to_inputs

__all__ = ["keyed_inputs"]


@contextmanager
def keyed_inputs(model: nn.Module, offset: Tensor) -> Iterator[nn.Module]:
    """Add a key to every input a network is given inside the block.

    An explainer that adds noise to the image, walks a path to it or masks parts of it would do the same to a key that
    is part of the image, and a network that tells the trigger itself would close. Here it explains the image, and the
    key comes on top of what it shows the network. For explainers of one pass both are the same.

    Args:
        model: A locked classifier.
        offset: What the key adds to a preprocessed image (channels, height, width).
    """
    with added_to_inputs(model, offset):
        yield model
