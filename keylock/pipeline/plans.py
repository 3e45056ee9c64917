"""What a run of the pipeline is told and what it gives back, shared by everything that makes bundles."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from keylock.bundle.manifest import Figure, Manifest, check_model_name
from keylock.bundle.sealing import Sealer
from keylock.data import DataSource
from keylock.data.batches import Batches
from keylock.errors import InputError, UnknownNameError
from keylock.explainers import check_lockable, explainer_kind
from keylock.export import VARIANTS
from keylock.training import DistributedGroup, Lock, LockSettings, ReferenceSettings
from keylock.trigger.keys import Key, KeySeed, default_tile

__all__ = [
    "CHECKPOINT",
    "REFERENCE",
    "Issue",
    "TrainOutcome",
    "TrainPlan",
    "batches_of",
    "check_shares",
    "checkpoint_of",
    "discard",
    "reference_settings",
]

CHECKPOINT = "lock.safetensors"
"""The file of a work folder with the state of the training."""

REFERENCE = "reference.safetensors"
"""The file of a work folder with the weights of the reference model, before folding."""


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Everything that decides what comes out of a run, except the secret.

    Attributes:
        out: Where the bundle goes.
        name: The model's name.
        data: Images to train and to measure on.
        architecture: A name of `keylock.models.architectures()`.
        settings: How to lock.
        explainers: What to lock.
        init: The user's trained weights; without them the reference is trained first.
        reference_steps: Steps of that training.
        reference_learning_rate: Its highest learning rate.
        batch_size: Images in a step.
        strength: Height of the key on pixels from 0 to 1.
        tile: Side of the key's repeated block, in pixels; 0 for the default of `Key.derive`.
        device: Where to train.
        measured_images: Test images to measure on, at most.
        seed: Of data order, initial weights and everything else drawn at random. It is not the key seed.
        cache_reference: Train the lock on images as they are, and compute the maps of the reference once for each.
        variants: Graphs in reduced precision to make as well, by the names of `keylock.export.VARIANTS`.
    """

    out: Path
    name: str
    data: DataSource
    architecture: str
    settings: LockSettings
    explainers: tuple[str, ...]
    init: Path | None = None
    reference_steps: int = 700
    reference_learning_rate: float = 1e-2
    batch_size: int = 64
    strength: float = 8 / 255
    tile: int = 0
    device: str = "auto"
    measured_images: int = 1000
    seed: int = 0
    cache_reference: bool = False
    variants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what can be checked without the data being read.

        Raises:
            InputError: The model's name, an explainer or a variant is none, or the batch is empty.
        """
        check_model_name(self.name)
        object.__setattr__(self, "tile", self.tile or default_tile(self.data.preprocessing.channels))
        check_lockable([(name, explainer_kind(name).differentiable) for name in self.explainers])
        for variant in self.variants:
            if variant not in VARIANTS:
                raise UnknownNameError("variant", variant, VARIANTS)
        if self.batch_size < 1 or self.reference_steps < 1:
            raise InputError(
                f"batch_size {self.batch_size} and reference_steps {self.reference_steps}: take at least 1"
            )

    @property
    def work(self) -> Path:
        """The folder of intermediate results."""
        return self.out.with_name(self.out.name + ".work")

    def key(self, seed: KeySeed) -> Key:
        """Derive the key from its seed."""
        preprocessing = self.data.preprocessing
        return Key.derive(
            seed, shape=preprocessing.shape, std=preprocessing.std, strength=self.strength, tile=self.tile
        )


@dataclass(frozen=True)
class Issue:
    """A key and the bundle that is sealed for it.

    Attributes:
        seed: The secret to derive the key from.
        sealer: Seals the seed into the bundle.
        out: Where the bundle goes.
    """

    seed: KeySeed
    sealer: Sealer
    out: Path


@dataclass(frozen=True)
class TrainOutcome:
    """What a run made.

    Attributes:
        manifest: Of the bundle that was written.
        lock: The locked classifier and its reference.
        key: The key.
        figures: What was measured.
    """

    manifest: Manifest
    lock: Lock
    key: Key
    figures: tuple[Figure, ...]


def check_shares(plan: TrainPlan) -> None:
    """Return where the processes that train together can share the batches of a plan.

    Raises:
        DataError: They cannot; otherwise the first step of the lock would say so, after hours of the reference.
    """
    DistributedGroup.current().parts(min(plan.batch_size, len(plan.data.train)), plan.settings.accumulate)


def batches_of(plan: TrainPlan, *, seed: int, augmented: bool = True) -> Batches:
    """Return the training images of a plan in batches, in an order drawn by a seed."""
    return Batches(
        plan.data.train,
        plan.data.preprocessing,
        batch_size=min(plan.batch_size, len(plan.data.train)),
        seed=seed,
        augmentation=plan.data.augmentation if augmented else None,
        drop_last=True,
    )


def reference_settings(plan: TrainPlan, key: Key, *, steps: int) -> ReferenceSettings:
    """Return how the reference of a plan is trained, to look past perturbations like a key."""
    return ReferenceSettings(
        steps=steps,
        magnitude=torch.from_numpy(np.abs(key.reveal())),
        tile=plan.tile,
        learning_rate=plan.reference_learning_rate,
        precision=plan.settings.precision,
        seed=plan.seed,
    )


def checkpoint_of(plan: TrainPlan) -> tuple[Path, bool]:
    """Return where the state of a training is kept, and whether an earlier run left one there."""
    checkpoint = plan.work / CHECKPOINT
    resume = checkpoint.is_file()
    # No process may write the file before all have looked for it.
    DistributedGroup.current().wait()
    return checkpoint, resume


def discard(work: Path, *further: str) -> None:
    """Remove what an earlier run left, so that a later `resume` finds this run and nothing of that one.

    Args:
        work: The work folder.
        further: Files to remove beside the checkpoint and the remembered maps of the reference model.
    """
    for name in (CHECKPOINT, *further):
        (work / name).unlink(missing_ok=True)
    for remembered in work.glob("reference-maps-*"):
        remembered.unlink()
