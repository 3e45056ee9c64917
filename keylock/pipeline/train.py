"""What `keylock train` does, without the command line: reference, lock, figures, bundle.

Everything that takes time leaves its result in the work folder beside the bundle, so that an interrupted run goes on
where it was. The reference model in there shows true maps to anybody: the folder is the vendor's, like the key seed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from keylock.bundle.sealing import Sealer
from keylock.bundle.write import check_place
from keylock.crypto.signing import SigningKey
from keylock.errors import ExportError, ModelError, ResumeError
from keylock.files.exclusive import held
from keylock.models import create, load_state, load_weights
from keylock.models.small_cnn import SmallCNN
from keylock.pipeline.fitted_keys import FITTED_KEYS, fit_keys, fitted_keys
from keylock.pipeline.issuing import issue_bundles
from keylock.pipeline.plans import (
    CHECKPOINT,
    REFERENCE,
    Issue,
    TrainOutcome,
    TrainPlan,
    batches_of,
    check_shares,
    checkpoint_of,
    discard,
    reference_settings,
)
from keylock.pipeline.trial import TRIAL_SECONDS, try_lock, untrained
from keylock.training import (
    DistributedGroup,
    Lock,
    Progress,
    Silent,
    lock,
    resolve_device,
    resolve_precision,
    train_reference,
)
from keylock.training.checkpoint import storing
from keylock.trigger.keys import Key, KeySeed

__all__ = ["assist", "prepare_reference", "train", "train_for_keys"]

_UNFINISHED_REFERENCE = "reference.part.safetensors"


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
    trial_seconds: float = TRIAL_SECONDS,
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
        trial_seconds: As of `train_for_keys`.

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
        trial_seconds=trial_seconds,
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
    trial_seconds: float = TRIAL_SECONDS,
) -> list[TrainOutcome]:
    """Train one lock that each of several keys opens, and publish a bundle for each key.

    The bundles have the same weights and the same delta, which the trigger of each key opens. In the processes of a
    `torch.distributed` process group the first one does this, and the others call `assist` with the same plan.

    Args:
        plan: What to do; bundles go where `issues` says.
        issues: The keys, at least one, the first of which the reference is trained for.
        signing_key: The issuer's.
        progress: Hears about every step.
        now: The clock; asked when a bundle is written.
        resume: Go on from what the work folder holds.
        overwrite: Replace bundles that are there.
        trial_seconds: How long to try the lock before it is trained: after so many seconds no further graph is begun;
            0 leaves the trial out.

    Raises:
        InUseError: Another run works in `plan.work`.
        KeylockError: As the parts do; whatever was reached is in `plan.work`.
    """
    check_shares(plan)
    for issue in issues:
        check_place(issue.out, overwrite=overwrite)
    with held(plan.work, "keylock train"):
        return _train_for_keys(
            plan,
            issues,
            signing_key=signing_key,
            progress=progress,
            now=now,
            resume=resume,
            overwrite=overwrite,
            trial_seconds=trial_seconds,
        )


def _train_for_keys(
    plan: TrainPlan,
    issues: Sequence[Issue],
    *,
    signing_key: SigningKey,
    progress: Progress,
    now: Callable[[], datetime],
    resume: bool,
    overwrite: bool,
    trial_seconds: float,
) -> list[TrainOutcome]:
    if not resume:
        discard(plan.work, REFERENCE, FITTED_KEYS, _UNFINISHED_REFERENCE)
    seeds = [issue.seed for issue in issues]
    keys = [plan.key(seed) for seed in seeds]
    if not (plan.work / CHECKPOINT).is_file():
        _try(plan, keys, progress=progress, seconds=trial_seconds, resume=resume)
    reference = prepare_reference(plan, keys[0], progress=progress, resume=resume)
    fit_keys(plan, reference, seeds)
    DistributedGroup.current().wait()
    keys = fitted_keys(plan, seeds)
    locked = _lock(plan, reference, keys, progress)
    return issue_bundles(
        plan,
        locked,
        keys,
        issues=issues,
        signing_key=signing_key,
        progress=progress,
        now=now,
        overwrite=overwrite,
    )


def _try(plan: TrainPlan, keys: Sequence[Key], *, progress: Progress, seconds: float, resume: bool) -> None:
    """Try the lock with the reference that is there, or with one that is not trained yet."""
    if not seconds:
        return
    there = plan.init is not None or (resume and (plan.work / REFERENCE).is_file())
    reference = prepare_reference(plan, keys[0], progress=progress, resume=resume) if there else untrained(plan)
    try:
        try_lock(plan, reference, tuple(keys), progress=progress, seconds=seconds)
    except (ExportError, ModelError) as error:
        raise type(error)(f"found before training: {error.message}") from error


def assist(plan: TrainPlan, *, seeds: Sequence[KeySeed]) -> None:
    """Train with the first process of the process group, which runs `train` or `train_for_keys` with the same plan.

    It trains the reference alone, while this process waits; then every step is shared.
    """
    check_shares(plan)
    DistributedGroup.current().wait()
    keys = fitted_keys(plan, seeds)
    reference = prepare_reference(plan, keys[0], progress=Silent(), resume=True)
    _lock(plan, reference, keys, Silent())


def _lock(plan: TrainPlan, reference: nn.Module, keys: Sequence[Key], progress: Progress) -> Lock:
    checkpoint, resume = checkpoint_of(plan)
    return lock(
        reference,
        batches_of(plan, seed=plan.seed + 1, augmented=not plan.cache_reference),
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
    finished = plan.work / REFERENCE
    identity = _identity(plan)
    if resume and finished.is_file():
        if _read_identity(finished) != identity:
            raise ResumeError(f"{finished} was trained with other settings: use the same, or start without resume=True")
        load_state(model, load_file(finished))
        return model.eval()
    train_reference(
        core,
        batches_of(plan, seed=plan.seed),
        reference_settings(plan, key, steps=plan.reference_steps),
        device=resolve_device(plan.device),
        progress=progress,
        checkpoint=plan.work / _UNFINISHED_REFERENCE,
        resume=resume,
    )
    if isinstance(model, SmallCNN) and isinstance(core, SmallCNN):
        model.take_core_(core, generator=torch.Generator().manual_seed(plan.seed)).eval()
    with storing(finished) as unfinished:
        save_file(model.state_dict(), unfinished, metadata={"identity": identity})
    return model


def _identity(plan: TrainPlan) -> str:
    """Digest of what decides the reference model."""
    parts = [plan.architecture, plan.reference_steps, plan.reference_learning_rate, plan.batch_size, plan.strength]
    precision = resolve_precision(plan.settings.precision, resolve_device(plan.device))
    preprocessing = plan.data.preprocessing.model_dump(mode="json")
    text = json.dumps([*parts, plan.tile, plan.seed, plan.data.summary(), precision, preprocessing])
    return hashlib.sha256(text.encode()).hexdigest()


def _read_identity(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return str((file.metadata() or {}).get("identity", ""))
