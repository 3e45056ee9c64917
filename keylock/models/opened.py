"""A lock whose trigger is known, in torch: images with the trigger on them are run by the weights that it opens."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from keylock.models.state import load_state
from keylock.trigger import Recogniser, TriggerStatistics
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key

__all__ = ["Opened", "Part", "arrays_of", "delta_between", "merged", "open_with"]


def arrays_of(model: nn.Module) -> dict[str, np.ndarray]:
    """Return the floating-point entries of a model's `state_dict()` as float32 arrays, by name."""
    entries = model.state_dict().items()
    return {name: tensor.float().cpu().numpy() for name, tensor in entries if tensor.is_floating_point()}


def delta_between(published: nn.Module, reference: nn.Module) -> Delta:
    """Return what takes published weights to those of the reference.

    Raises:
        InputError: They are of two models, or do not differ.
    """
    return Delta.between(arrays_of(published), arrays_of(reference))


def merged(published: nn.Module, delta: Delta) -> nn.Module:
    """Return a copy of a published model with the delta in its weights: the reference model, which is secret.

    Raises:
        InputError: The delta is another model's.
    """
    opened = copy.deepcopy(published)
    weights = delta.added_to(arrays_of(published))
    load_state(opened, {name: torch.from_numpy(weights[name]) for name in delta.names}, strict=False)
    return opened


def open_with(published: nn.Module, delta: Delta, key: Key, statistics: TriggerStatistics) -> "Opened":
    """Return what shows true maps on images with the trigger of a key, and what the published model shows on others.

    Args:
        published: The network as it is published; it is used, not copied.
        delta: What takes its weights back to the reference's.
        key: The key.
        statistics: What triggers are read by.

    Raises:
        InputError: The delta is another model's, or the trigger does not fit the statistics.
    """
    recogniser = Recogniser(key.signs(), statistics, strength=key.strength)

    def reads(images: Tensor) -> Tensor:
        return torch.from_numpy(recogniser.recognise(images.float().cpu().numpy()))

    network = merged(published, delta)
    device = next(published.parameters()).device
    return Opened(published, network, torch.from_numpy(key.reveal()).to(device), reads)


class Part(NamedTuple):
    """Rows of a batch that one network runs.

    Attributes:
        rows: Their places in the batch (rows,), int64.
        network: What runs them.
        images: What it is given (rows, channels, height, width).
        added: What is added to everything that it is given, or None.
    """

    rows: Tensor
    network: nn.Module
    images: Tensor
    added: Tensor | None


class Opened(nn.Module):
    """Runs each image by the published weights, or where the trigger is on it, without the trigger by the opened ones.

    `explain_many` knows it: an image is looked at once, before an explainer varies it.

    Attributes:
        published: The network as it is published.
        network: The network with the delta in its weights.
    """

    key: Tensor

    def __init__(
        self, published: nn.Module, network: nn.Module, key: Tensor, reads: Callable[[Tensor], Tensor]
    ) -> None:
        """Take both networks.

        Args:
            published: The network as it is published.
            network: The network with the delta in its weights, as `merged` makes it.
            key: The trigger on preprocessed images (channels, height, width).
            reads: Tells which images (count, channels, height, width) carry the trigger, bool (count,).
        """
        super().__init__()
        self.published, self.network = published, network
        self.register_buffer("key", key.clone(), persistent=False)
        self._reads = reads
        self._added: Tensor | None = None
        self.train(published.training)

    @contextmanager
    def adding(self, offset: Tensor) -> Iterator[None]:
        """Add a perturbation, (channels, height, width) or one for each row, to whatever comes in, inside the block."""
        before = self._added
        self._added = offset if before is None else before + offset
        try:
            yield
        finally:
            self._added = before

    def reads(self, images: Tensor) -> Tensor:
        """Return which images (count, channels, height, width) carry the trigger, bool (count,)."""
        if not len(images):
            return torch.zeros(0, dtype=torch.bool, device=images.device)
        return self._reads(images.detach()).to(images.device)

    def parts(self, images: Tensor) -> Iterator[Part]:
        """Yield the rows that each network runs; networks that run none are left out.

        Where there are no rows at all the published network runs none, so that answers have their shape.
        """
        added = None if self._added is None else self._added.to(images)
        open_ = self._open(images, added)
        for wanted, network in ((True, self.network), (False, self.published)):
            rows = (open_ == wanted).nonzero().squeeze(1)
            if not len(rows) and (wanted or len(images)):
                continue
            given, own = images[rows], added[rows] if added is not None and added.dim() == 4 else added
            if wanted:
                key = self.key.to(images)
                # What is added and taken off again cancels exactly; pooling would see the rounding of a sum.
                yield Part(rows, network, given - key if own is None else given + (own - key), None)
            else:
                yield Part(rows, network, given, own)

    def _open(self, images: Tensor, added: Tensor | None) -> Tensor:
        """Return which rows are run with the opened weights, bool (batch,)."""
        if added is None:
            return self.reads(images)
        if added.dim() == 3 and torch.equal(added, self.key.to(images)):
            # Whoever adds the trigger itself, as a server does for a license, need not find it on a texture.
            return torch.ones(len(images), dtype=torch.bool, device=images.device)
        return self.reads(images + added)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (batch, classes) of images (batch, channels, height, width)."""
        parts = list(self.parts(images))
        logits = [part.network(part.images if part.added is None else part.images + part.added) for part in parts]
        order = torch.cat([part.rows for part in parts]).argsort()
        return torch.cat(logits)[order]
