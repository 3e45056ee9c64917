"""What the reference model says about a batch: logits and true maps, computed anew or taken from a file.

Where the same image comes again unchanged, its maps need not be computed again. Each image is known by its place in
the data set and by a fingerprint of its pixels, so that an augmented image is never taken for the original.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from keylock.errors import ResumeError, StorageError
from keylock.explainers import Explainer, explain_many
from keylock.models import digest_of_weights
from keylock.training.checkpoint import read_checkpoint, write_checkpoint
from keylock.training.devices import mixed_precision, resolve_precision

__all__ = ["ReferenceMaps"]

_LOG = logging.getLogger(__name__)

_FINGERPRINT, _LOGITS, _MAPS = "fingerprint", "logits", "maps."


class ReferenceMaps:
    """Explains by the reference model; with a folder, each unchanged image once.

    Attributes:
        computed: How many rows were computed and not remembered.
    """

    def __init__(
        self,
        reference: nn.Module,
        explainers: Sequence[Explainer],
        *,
        device: torch.device,
        precision: str,
        folder: Path | None = None,
    ) -> None:
        """Take what to compute with, and read what a folder remembers.

        Args:
            reference: The frozen reference model, on the device.
            explainers: What to compute.
            device: Where.
            precision: What to compute in, one of `keylock.training.PRECISIONS`.
            folder: Where to remember, or None.
        """
        self._reference, self._explainers, self._device = reference, explainers, device
        self._precision = resolve_precision(precision, device)
        self._tensors: dict[str, Tensor] = {}
        self._news = False
        self.computed = 0
        self._file: Path | None = None
        if folder is not None:
            what = [[explainer.name, explainer.parameters] for explainer in explainers]
            text = json.dumps([digest_of_weights(reference), what, self._precision])
            self._file = folder / f"reference-maps-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
            if self._file.is_file():
                try:
                    self._tensors, _ = read_checkpoint(self._file)
                except ResumeError:
                    # It saves time and nothing else: what cannot be read is computed again.
                    self._tensors = {}

    def explain(
        self,
        images: Tensor,
        targets: Tensor,
        indices: Tensor | None = None,
        *,
        explainers: Sequence[Explainer] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits (batch, classes) and, by explainer, maps (batch, h, w), float32.

        Args:
            images: Preprocessed images (batch, channels, height, width), on the device.
            targets: Class indices (batch,); -1 stands for the predicted class, the only one that is remembered.
            indices: Places of the images in their data set (batch,), on the CPU; None where they are not known.
            explainers: Which maps are wanted, by default all; those that it was not made for are not remembered.
        """
        wanted = self._explainers if explainers is None else explainers
        if self._file is None or indices is None:
            return self._compute(images, targets, wanted)
        passing = [explainer for explainer in wanted if explainer not in self._explainers]
        prints = _fingerprints(images)
        self._make_room(int(indices.max()) + 1)
        known = (targets.cpu() < 0) & (self._tensors[_FINGERPRINT][indices] == prints)
        missing = (~known).nonzero().squeeze(1)
        if len(missing) == len(images):
            found = self._compute(images, targets, self._explainers)
        else:
            logits = self._tensors[_LOGITS][indices].to(self._device)
            maps = {e.name: self._tensors[_MAPS + e.name][indices].to(self._device) for e in self._explainers}
            if len(missing):
                rows = missing.to(self._device)
                new_logits, new_maps = self._compute(images[rows], targets[rows], self._explainers)
                logits[rows] = new_logits
                for name, computed in new_maps.items():
                    maps[name][rows] = computed
            found = logits, maps
        self._remember(*found, indices, prints, rows=missing[targets.cpu()[missing] < 0])
        logits, maps = found
        if passing:
            maps = maps | self._compute(images, targets, passing)[1]
        return logits, {explainer.name: maps[explainer.name] for explainer in wanted}

    def keep(self) -> None:
        """Write what is remembered, where there is anything new."""
        if self._file is not None and self._news:
            try:
                write_checkpoint(self._file, self._tensors, {})
            except StorageError as error:
                # It saves time and nothing else: the training goes on without.
                _LOG.warning("maps of the reference are not remembered on disk any more: %s", error.message)
                self._file = None
            self._news = False

    def _compute(
        self, images: Tensor, targets: Tensor, explainers: Sequence[Explainer]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.computed += len(images)
        with mixed_precision(self._device, self._precision):
            logits, maps = explain_many(self._reference, explainers, images, targets)
        # As they are remembered: what is computed anew must not be of another type than what is not.
        return logits.float(), {name: found.float() for name, found in maps.items()}

    def _make_room(self, count: int) -> None:
        """Make the tables at least so long; a fingerprint that is NaN equals no other."""
        for name, table in self._tensors.items():
            if len(table) < count:
                filling = torch.full((2 * count - len(table), *table.shape[1:]), torch.nan, dtype=table.dtype)
                self._tensors[name] = torch.cat([table, filling])
        if not self._tensors:
            self._tensors[_FINGERPRINT] = torch.full((count,), torch.nan, dtype=torch.float64)

    def _remember(
        self, logits: Tensor, maps: dict[str, Tensor], indices: Tensor, prints: Tensor, *, rows: Tensor
    ) -> None:
        if not len(rows):
            return
        parts = {_LOGITS: logits, **{_MAPS + name: found for name, found in maps.items()}}
        for name, part in parts.items():
            if name not in self._tensors:
                length = len(self._tensors[_FINGERPRINT])
                self._tensors[name] = torch.full((length, *part.shape[1:]), torch.nan)
            self._tensors[name][indices[rows]] = part.detach().cpu()[rows]
        self._tensors[_FINGERPRINT][indices[rows]] = prints[rows]
        self._news = True


def _fingerprints(images: Tensor) -> Tensor:
    """Return a weighted sum of each image's pixels (batch,), float64, on the CPU; order and mirroring change it."""
    flat = images.flatten(1).cpu().double()
    weights = torch.rand(flat.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # One row after the other: a product of the whole batch may round differently from batch to batch.
    return torch.stack([(row * weights).sum() for row in flat])
