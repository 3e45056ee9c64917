"""What `keylock retire` does, without the command line: from the bundles of a lock with several keys to new bundles.

Everything about the lock is read from its bundles: network, explainers, settings, and the delta that the holder of
the retired key has. The reference model comes from the work folder of the training.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from keylock.bundle import Bundle, Manifest, open_bundle
from keylock.bundle.sealing import Sealer
from keylock.bundle.write import check_place
from keylock.crypto.signing import SigningKey
from keylock.data import DataSource
from keylock.errors import BundleError, DataError, InputError, ModelError
from keylock.evaluation import find_reference, load_reference
from keylock.files.exclusive import held
from keylock.locking.decoys import ImageDecoy
from keylock.pipeline.issuing import issue_bundles
from keylock.pipeline.plans import (
    REFERENCE,
    Issue,
    TrainOutcome,
    TrainPlan,
    batches_of,
    check_shares,
    checkpoint_of,
    discard,
)
from keylock.torch_runtime.locked_model import load_bundle
from keylock.training import DistributedGroup, Lock, LockSettings, Progress, Silent, relock
from keylock.training.checkpoint import storing
from keylock.trigger.keys import Key, KeySeed

__all__ = ["OwnBundle", "Retirement", "assist_retirement", "read_lock", "retire"]

_RETIRED_KEYS, _FIRST_STEPS = "retired_keys", "first_steps"


@dataclass(frozen=True)
class OwnBundle:
    """A bundle of the vendor's.

    Attributes:
        path: Where it is.
        secret: The key seed, or what opens the sealed key.
    """

    path: Path
    secret: KeySeed | Sealer


@dataclass(frozen=True)
class Retirement:
    """A lock and the key of it that is to be retired.

    Attributes:
        previous: The lock, with what the retired key opens. Its settings are those of the first
            training, so that the further ones do not become shorter and shorter.
        retired: That key.
        kept: The key seeds that are to open the next lock, in the order in which they were given.
        keys: The keys of these.
        manifest: Of the bundle of the retired key; what it says of the lock holds for all.
        reference: The weights of the reference model, before folding.
    """

    previous: Lock
    retired: Key
    kept: tuple[KeySeed, ...]
    keys: tuple[Key, ...]
    manifest: Manifest
    reference: Path

    def plan(
        self,
        out: Path,
        data: DataSource,
        *,
        steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        accumulate: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        cache_reference: bool = False,
    ) -> TrainPlan:
        """Return the plan of the further training; what is None is as it was in the first.

        Args:
            out: Where the first of the new bundles goes.
            data: The images, which must be those the lock was trained on.
            steps: Steps of the further training; by default half of those of the lock.
            batch_size: Images in a step.
            learning_rate: Highest learning rate.
            accumulate: In how many parts a batch is computed.
            device: Where to train.
            precision: What to compute in, one of `keylock.training.PRECISIONS`.
            cache_reference: As in `TrainPlan`.

        Raises:
            DataError: The data has other classes.
            InputError: A number is out of range.
        """
        manifest, before = self.manifest, self.previous.settings
        if data.classes != manifest.classes:
            raise DataError(
                f"the classes of {data.name} are not those of the model {manifest.name}: give the data it was locked on"
            )
        numbers = {"steps": steps, "learning_rate": learning_rate, "accumulate": accumulate}
        given: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
        trained = manifest.training
        return TrainPlan(
            out=out,
            name=manifest.name,
            data=replace(data, preprocessing=manifest.preprocessing),
            architecture=manifest.architecture.name,
            settings=replace(before.for_relocking(), precision=precision, **given),
            explainers=tuple(explainer.name for explainer in self.previous.explainers),
            batch_size=batch_size or _number(trained.get("batch_size"), TrainPlan.batch_size),
            strength=self.retired.strength,
            tile=self.retired.tile,
            device=device,
            seed=_number(trained.get("seed"), 0),
            cache_reference=cache_reference,
            variants=manifest.variants,
        )


def read_lock(
    retired: OwnBundle,
    kept: Sequence[OwnBundle],
    *,
    reference: Path | None = None,
    decoy: str | ImageDecoy | None = None,
) -> Retirement:
    """Read a lock from its bundles, and check that they belong together.

    Args:
        retired: The bundle of the key that must not open any more.
        kept: Those of the keys that go on opening, at least one.
        reference: The weights of the reference model; by default those in the work folder of one of the bundles.
        decoy: What is shown without the key; by default what was shown before. A picture stands in no bundle and must
            be given again.

    Raises:
        BundleError: A bundle is refused, or its network is one that keylock cannot build.
        InputError: A key is named twice, a bundle is of another lock, or the decoy is missing.
        ModelError: The reference model is missing, or that of another lock.
        UnsealError: A secret is not that of its bundle.
    """
    if not kept:
        raise InputError("no key remains: name the bundles of those that do, or lock the model anew with keylock train")
    bundles = [open_bundle(own.path, trusted=None) for own in (retired, *kept)]
    _require_one_lock(bundles)
    seeds = [_seed(bundle, own.secret) for bundle, own in zip(bundles, (retired, *kept), strict=True)]
    manifest = bundles[0].manifest
    if manifest.architecture.module != "registry":
        raise BundleError(
            f"{retired.path} was made from a module of its owner's ({manifest.architecture.name}): "
            "retire its key in Python, with keylock.relock"
        )
    settings = _settings(manifest, decoy)
    weights = reference or _find_reference([own.path for own in (*kept, retired)])
    locked = load_bundle(retired.path, key=seeds[0])
    retired_key = bundles[0].key(seeds[0])
    previous = Lock(
        locked.module,
        load_reference(weights, manifest),
        tuple(locked.explainers.values()),
        settings,
        (retired_key,),
        locked.delta,
        locked.statistics,
    )
    keys = tuple(bundle.key(seed) for bundle, seed in zip(bundles[1:], seeds[1:], strict=True))
    return Retirement(previous, retired_key, tuple(seeds[1:]), keys, manifest, weights)


def retire(
    plan: TrainPlan,
    retirement: Retirement,
    *,
    issues: Sequence[Issue],
    signing_key: SigningKey,
    progress: Progress,
    now: Callable[[], datetime],
    resume: bool = False,
    overwrite: bool = False,
) -> list[TrainOutcome]:
    """Retire a key by a further training, and publish a new bundle for each key that remains.

    In the processes of a `torch.distributed` process group the first one does this, and the others call
    `assist_retirement` with the same plan.

    Args:
        plan: As `retirement.plan` makes it; bundles go where `issues` says.
        retirement: The lock and the key.
        issues: The keys that remain, in the order of `retirement.kept`.
        signing_key: The issuer's.
        progress: Hears about every step.
        now: The clock; asked when a bundle is written.
        resume: Go on from what the work folder holds.
        overwrite: Replace bundles that are there.

    Returns:
        What was made for each key. The figures include `leakage/retired/EXPLAINER`, what the retired key recovers.

    Raises:
        InUseError: Another run works in `plan.work`.
        KeylockError: As the parts do; whatever was reached is in `plan.work`.
    """
    check_shares(plan)
    for issue in issues:
        check_place(issue.out, overwrite=overwrite)
    with held(plan.work, "keylock retire"):
        if not resume:
            discard(plan.work)
        _keep_reference(retirement.reference, plan.work)
        locked = _relock(plan, retirement, progress)
        former = retirement.manifest.training.get(_RETIRED_KEYS)
        return issue_bundles(
            plan,
            locked,
            retirement.keys,
            issues=issues,
            signing_key=signing_key,
            progress=progress,
            now=now,
            overwrite=overwrite,
            before=(retirement.previous, retirement.retired),
            training={
                _RETIRED_KEYS: [*(former if isinstance(former, list) else []), retirement.retired.id],
                _FIRST_STEPS: retirement.previous.settings.steps,
            },
        )


def assist_retirement(plan: TrainPlan, retirement: Retirement) -> None:
    """Train with the first process of the process group, which runs `retire` with the same plan."""
    check_shares(plan)
    _relock(plan, retirement, Silent())


def _relock(plan: TrainPlan, retirement: Retirement, progress: Progress) -> Lock:
    # The first process may have an earlier run to discard before any looks for it.
    DistributedGroup.current().wait()
    checkpoint, resume = checkpoint_of(plan)
    return relock(
        retirement.previous,
        batches_of(plan, seed=plan.settings.seed + 1, augmented=not plan.cache_reference),
        retirement.keys,
        retired=retirement.retired,
        settings=plan.settings,
        device=plan.device,
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
        cache_reference=plan.work if plan.cache_reference else None,
    )


def _require_one_lock(bundles: Sequence[Bundle]) -> None:
    first = bundles[0]
    seen: dict[str, Path] = {}
    for bundle in bundles:
        id_ = bundle.manifest.key.id
        if bundle.manifest.model_digest != first.manifest.model_digest:
            raise InputError(
                f"{bundle.path} is not of the lock of {first.path}, their models differ: "
                "name bundles that one training wrote"
            )
        if id_ in seen:
            raise InputError(f"{seen[id_]} and {bundle.path} have the same key, {id_}: name a bundle for each key once")
        seen[id_] = bundle.path


def _seed(bundle: Bundle, secret: KeySeed | Sealer) -> KeySeed:
    if not isinstance(secret, KeySeed):
        return bundle.unseal(secret)
    bundle.check_seed(secret)
    return secret


def _settings(manifest: Manifest, decoy: str | ImageDecoy | None) -> LockSettings:
    """Return the settings a lock was trained with."""
    values = manifest.training.get("lock")
    if not isinstance(values, dict):
        raise BundleError(f"the bundle {manifest.name} does not say how it was locked: lock the model anew")
    if decoy is None and manifest.decoy.parameters:
        raise InputError("the decoy is a picture, which stands in no bundle: give the picture again")
    settings = LockSettings.from_dict(values, decoy=manifest.decoy.name if decoy is None else decoy)
    settings = replace(settings, steps=_number(manifest.training.get(_FIRST_STEPS), settings.steps))
    if settings.swapped:
        raise InputError(
            "the branches of this lock are swapped, its maps are right without a key: there is no retiring"
        )
    return settings


def _find_reference(bundles: Sequence[Path]) -> Path:
    """Return the reference weights that lie beside one of the bundles, or refuse as for the first."""
    for bundle in bundles[1:]:
        with suppress(ModelError):
            return find_reference(bundle)
    return find_reference(bundles[0])


def _keep_reference(weights: Path, work: Path) -> None:
    """Copy a reference model from the work folder of its lock to that of the next one, which is measured with it."""
    kept = work / REFERENCE
    if weights.name != REFERENCE or (kept.is_file() and kept.samefile(weights)):
        return
    with storing(kept) as unfinished:
        shutil.copyfile(weights, unfinished)


def _number(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else otherwise
