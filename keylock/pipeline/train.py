"""What `keylock train` does, without the command line: reference, lock, figures, bundle.

Everything that takes time leaves its result in the work folder beside the bundle, so that an interrupted run goes on
where it was. The reference model in there shows true maps to anybody: the folder is the vendor's, like the key seed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from keylock.bundle.manifest import Figure, Manifest
from keylock.bundle.sealing import Sealer
from keylock.bundle.write import check_place
from keylock.data import DataSource
from keylock.data.batches import Batches, load_batch
from keylock.data.sets import stratified_order
from keylock.errors import ResumeError
from keylock.evaluation import measure
from keylock.keys import Key, KeySeed
from keylock.models import create, load_weights
from keylock.models.small_cnn import SmallCNN
from keylock.pipeline.factors import measure_factors
from keylock.pipeline.publish import Publication, publish
from keylock.replacing import replacing
from keylock.signing import SigningKey
from keylock.training import Lock, LockSettings, Progress, Silent, Team, lock, resolve_device, train_reference

__all__ = ["Issue", "TrainOutcome", "TrainPlan", "assist", "prepare_reference", "train", "train_for_keys"]

_PROOF_IMAGES = 16


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
        tile: Side of the key's repeated block, in pixels.
        device: Where to train.
        measured_images: Test images to measure on, at most.
        seed: Of data order, initial weights and everything else drawn at random. It is not the key seed.
        cache_reference: Train the lock on images as they are, and compute the maps of the reference once for each.
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
    tile: int = 8
    device: str = "auto"
    measured_images: int = 1000
    seed: int = 0
    cache_reference: bool = False

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


def train(
    plan: TrainPlan,
    *,
    seed: KeySeed,
    signing_key: SigningKey,
    sealer: Sealer,
    progress: Progress,
    now: Callable[[], datetime],
    resume: bool = False,
    overwrite: bool = False,
) -> TrainOutcome:
    """Train or load the reference, lock it, measure the lock and publish the bundle.

    Args:
        plan: What to do.
        seed: The secret to derive the key from.
        signing_key: The issuer's.
        sealer: Seals the seed into the bundle.
        progress: Hears about every step.
        now: The clock; asked when the bundle is written.
        resume: Go on from what the work folder holds.
        overwrite: Replace a bundle that is there.

    Raises:
        KeylockError: As the parts do; whatever was reached is in `plan.work`.
    """
    [outcome] = train_for_keys(
        plan,
        issues=[Issue(seed, sealer, plan.out)],
        signing_key=signing_key,
        progress=progress,
        now=now,
        resume=resume,
        overwrite=overwrite,
    )
    return outcome


def train_for_keys(
    plan: TrainPlan,
    *,
    issues: Sequence[Issue],
    signing_key: SigningKey,
    progress: Progress,
    now: Callable[[], datetime],
    resume: bool = False,
    overwrite: bool = False,
) -> list[TrainOutcome]:
    """Train one lock that each of several keys opens, and publish a bundle for each key.

    The bundles have the same weights; each holds the second factor for its own key alone. In the processes of a
    `torch.distributed` process group the first one does this, and the others call `assist` with the same plan.

    Args:
        plan: What to do; bundles go where `issues` says.
        issues: The keys, at least one, the first of which the reference is trained for.
        signing_key: The issuer's.
        progress: Hears about every step.
        now: The clock; asked when a bundle is written.
        resume: Go on from what the work folder holds.
        overwrite: Replace bundles that are there.

    Raises:
        KeylockError: As the parts do; whatever was reached is in `plan.work`.
    """
    for issue in issues:
        check_place(issue.out, overwrite=overwrite)
    if not resume:
        _discard(plan.work)
    keys = [plan.key(issue.seed) for issue in issues]
    reference = prepare_reference(plan, keys[0], progress=progress, resume=resume)
    Team.current().wait()
    locked = _lock(plan, reference, keys, progress)
    outcomes = []
    for issue, key in zip(issues, keys, strict=True):
        own = locked.for_key(key)
        figures = _measure(plan, own, key, progress)
        manifest = _publish(plan, own, key, figures, issue, signing_key, now(), progress, overwrite=overwrite)
        outcomes.append(TrainOutcome(manifest, own, key, figures))
    return outcomes


def assist(plan: TrainPlan, *, seeds: Sequence[KeySeed]) -> None:
    """Train with the first process of the process group, which runs `train` or `train_for_keys` with the same plan.

    It trains the reference alone, while this process waits; then every step is shared.
    """
    Team.current().wait()
    keys = [plan.key(seed) for seed in seeds]
    reference = prepare_reference(plan, keys[0], progress=Silent(), resume=True)
    _lock(plan, reference, keys, Silent())


def _lock(plan: TrainPlan, reference: nn.Module, keys: Sequence[Key], progress: Progress) -> Lock:
    checkpoint = plan.work / "lock.safetensors"
    resume = checkpoint.is_file()
    # No process may write the file before all have looked for it.
    Team.current().wait()
    return lock(
        reference,
        _batches(plan, seed=plan.seed + 1, augmented=not plan.cache_reference),
        keys,
        explainers=plan.explainers,
        settings=plan.settings,
        device=plan.device,
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
        cache_reference=plan.work if plan.cache_reference else None,
    )


def prepare_reference(plan: TrainPlan, key: Key, *, progress: Progress, resume: bool = False) -> nn.Module:
    """Return the trained reference model: the user's own, one trained before, or one trained now.

    Raises:
        ModelError: The user's weights do not fit.
        ResumeError: The work folder holds the reference of another run.
    """
    with torch.random.fork_rng(devices=[]):
        # Initial weights come from torch's global generator; inside the block it is ours.
        torch.manual_seed(plan.seed)
        model = create(
            plan.architecture,
            num_classes=len(plan.data.classes),
            channels=plan.data.preprocessing.channels,
            image_size=plan.data.preprocessing.size[0],
        )
        core = model.core() if isinstance(model, SmallCNN) else model
    if plan.init is not None:
        return load_weights(model, plan.init).eval()
    finished = plan.work / "reference.safetensors"
    identity = _identity(plan)
    if resume and finished.is_file():
        if _read_identity(finished) != identity:
            raise ResumeError(f"{finished} was trained with other settings: use the same, or start without --resume")
        model.load_state_dict(load_file(finished))
        return model.eval()
    train_reference(
        core,
        _batches(plan, seed=plan.seed),
        steps=plan.reference_steps,
        magnitude=_magnitude(key),
        tile=plan.tile,
        learning_rate=plan.reference_learning_rate,
        device=resolve_device(plan.device),
        progress=progress,
        amp=plan.settings.amp,
        seed=plan.seed,
        checkpoint=plan.work / "reference.part.safetensors",
        resume=resume,
    )
    if isinstance(model, SmallCNN) and isinstance(core, SmallCNN):
        model.take_core_(core, generator=torch.Generator().manual_seed(plan.seed)).eval()
    with replacing(finished) as unfinished:
        save_file(model.state_dict(), unfinished, metadata={"identity": identity})
    return model


def _discard(work: Path) -> None:
    """Remove what an earlier run left, so that a later `resume` finds this run and nothing of that one."""
    for name in ("reference.safetensors", "reference.part.safetensors", "lock.safetensors"):
        (work / name).unlink(missing_ok=True)
    for remembered in work.glob("reference-maps-*"):
        remembered.unlink()


def _identity(plan: TrainPlan) -> str:
    """Digest of what decides the reference model."""
    parts = [plan.architecture, plan.reference_steps, plan.reference_learning_rate, plan.batch_size, plan.strength]
    text = json.dumps([*parts, plan.tile, plan.seed, plan.data.summary()])
    return hashlib.sha256(text.encode()).hexdigest()


def _read_identity(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return str((file.metadata() or {}).get("identity", ""))


def _magnitude(key: Key) -> Tensor:
    return torch.from_numpy(np.abs(key.reveal()))


def _batches(plan: TrainPlan, *, seed: int, augmented: bool = True) -> Batches:
    return Batches(
        plan.data.train,
        plan.data.preprocessing,
        batch_size=min(plan.batch_size, len(plan.data.train)),
        seed=seed,
        augmentation=plan.data.augmentation if augmented else None,
        drop_last=True,
    )


def _measure(plan: TrainPlan, locked: Lock, key: Key, progress: Progress) -> tuple[Figure, ...]:
    progress.start("measure", 1, 0)
    test = plan.data.test
    rows = stratified_order(test.labels, seed=plan.seed)[: plan.measured_images]
    batch = load_batch(test, plan.data.preprocessing, indices=rows)
    masks = test.take(rows).resized_masks(plan.data.preprocessing)
    device = resolve_device(plan.device)
    about = f"{len(rows)} test images of {plan.data.name}"
    reference, published, images = locked.reference.to(device), locked.module.to(device), batch.images.to(device)
    opened = locked.opened(key)
    explainers = [explainer for explainer in locked.explainers if explainer.differentiable]
    figures = measure(
        reference,
        opened,
        key=key,
        explainers=explainers,
        images=images,
        labels=batch.labels.to(device),
        masks=None if masks is None else torch.from_numpy(masks).to(device),
        about=about,
    )
    if locked.adapter is not None:
        figures += measure_factors(
            reference, published, opened, key=key, explainers=explainers, images=images, about=about
        )
    locked.reference.cpu()
    locked.module.cpu()
    progress.advance({})
    progress.finish()
    return figures


def _publish(
    plan: TrainPlan,
    locked: Lock,
    key: Key,
    figures: tuple[Figure, ...],
    issue: Issue,
    signing_key: SigningKey,
    created: datetime,
    progress: Progress,
    *,
    overwrite: bool,
) -> Manifest:
    batch = load_batch(plan.data.test, plan.data.preprocessing, indices=np.arange(_PROOF_IMAGES) % len(plan.data.test))
    publication = Publication(
        name=plan.name,
        classes=plan.data.classes,
        preprocessing=plan.data.preprocessing,
        architecture=plan.architecture,
        figures=figures,
        training={"data": plan.data.summary(), "batch_size": plan.batch_size, "seed": plan.seed},
    )
    progress.start("publish", len(locked.explainers) + 2, 0)
    manifest = publish(
        locked,
        issue.out,
        publication,
        seed=issue.seed,
        key=key,
        images=batch.images,
        signing_key=signing_key,
        sealer=issue.sealer,
        created=created,
        overwrite=overwrite,
        on_step=lambda _what: progress.advance({}),
    )
    progress.finish()
    return manifest
