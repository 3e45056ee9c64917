"""From a finished lock to its bundles: measure it for each of its keys, and publish what belongs to the key."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import numpy as np
import torch
from pydantic import JsonValue

from keylock.bundle.manifest import Figure, Manifest
from keylock.crypto.signing import SigningKey
from keylock.data.batches import load_batch
from keylock.data.sets import stratified_order
from keylock.errors import BundleError
from keylock.evaluation import measure
from keylock.models import split_rows
from keylock.pipeline.graphs import count_steps
from keylock.pipeline.plans import Issue, TrainOutcome, TrainPlan
from keylock.pipeline.publish import Publication, publish
from keylock.pipeline.retired import measure_retired
from keylock.training import Lock, NamedSteps, Progress, resolve_device
from keylock.trigger.keys import Key

__all__ = ["issue_bundles"]

_PROOF_IMAGES = 16
_VARIANT_IMAGES = 256
"""The most that variants are made and judged on: few images say little of a mean."""


def issue_bundles(
    plan: TrainPlan,
    locked: Lock,
    keys: Sequence[Key],
    *,
    issues: Sequence[Issue],
    signing_key: SigningKey,
    progress: Progress,
    now: Callable[[], datetime],
    overwrite: bool,
    before: tuple[Lock, Key] | None = None,
    training: Mapping[str, JsonValue] | None = None,
) -> list[TrainOutcome]:
    """Measure a lock and publish a bundle for each of its keys.

    Args:
        plan: What it was trained by.
        locked: The lock.
        keys: Its keys.
        issues: What is written for each of them, in their order.
        signing_key: The issuer's.
        progress: Hears about every step.
        now: The clock; asked when a bundle is written.
        overwrite: Replace bundles that are there.
        before: The lock of which a key was retired, and that key, to be measured on the new one.
        training: Further settings to record.

    Raises:
        KeylockError: As measuring and publishing do.
    """
    outcomes = []
    compiled: dict[str, bytes] = {}
    for issue, key in zip(issues, keys, strict=True):
        figures = _measure(plan, locked, key, progress, before)
        publication = _publication(plan, figures, training or {})
        try:
            manifest = _publish(
                plan, locked, key, publication, issue, signing_key, now(), progress, compiled, overwrite=overwrite
            )
        except BundleError as error:
            raise BundleError(f"{error.message}; the lock is kept in {plan.work}: go on with resume=True") from error
        outcomes.append(TrainOutcome(manifest, locked, key, figures))
    return outcomes


def _measure(
    plan: TrainPlan, locked: Lock, key: Key, progress: Progress, before: tuple[Lock, Key] | None
) -> tuple[Figure, ...]:
    test = plan.data.test
    rows = stratified_order(test.labels, seed=plan.seed)[: plan.measured_images]
    batch = load_batch(test, plan.data.preprocessing, indices=rows)
    masks = test.take(rows).resized_masks(plan.data.preprocessing)
    device = resolve_device(plan.device)
    about = f"{len(rows)} test images of {plan.data.name}"
    reference, published, images = locked.reference.to(device), locked.module.to(device), batch.images.to(device)
    opened = locked.opened(key).to(device)
    explainers = [explainer for explainer in locked.explainers if explainer.differentiable]
    # Explained are all images by the reference, keyed, keyless and with wrong keys; then what the others count.
    runs = 4 + 2 * (before is not None)
    with NamedSteps(progress, "measure", runs * len(split_rows(images))) as step:
        figures = measure(
            reference,
            opened,
            key=key,
            explainers=explainers,
            images=images,
            labels=batch.labels.to(device),
            masks=None if masks is None else torch.from_numpy(masks).to(device),
            about=about,
            on_step=step,
        )
        if before is not None:
            old, retired = before
            figures += measure_retired(
                reference,
                published,
                old.delta,
                retired,
                explainers=explainers,
                images=images,
                about=about,
                on_step=step,
            )
    locked.reference.cpu()
    locked.module.cpu()
    return figures


def _publication(plan: TrainPlan, figures: tuple[Figure, ...], training: Mapping[str, JsonValue]) -> Publication:
    own: dict[str, JsonValue] = {"data": plan.data.summary(), "batch_size": plan.batch_size, "seed": plan.seed}
    return Publication(
        name=plan.name,
        classes=plan.data.classes,
        preprocessing=plan.data.preprocessing,
        architecture=plan.architecture,
        figures=figures,
        training={**own, **training},
        variants=plan.variants,
    )


def _publish(
    plan: TrainPlan,
    locked: Lock,
    key: Key,
    publication: Publication,
    issue: Issue,
    signing_key: SigningKey,
    created: datetime,
    progress: Progress,
    compiled: dict[str, bytes],
    *,
    overwrite: bool,
) -> Manifest:
    batch = load_batch(plan.data.test, plan.data.preprocessing, indices=np.arange(_PROOF_IMAGES) % len(plan.data.test))
    order = stratified_order(plan.data.test.labels, seed=plan.seed)[:_VARIANT_IMAGES]
    more = load_batch(plan.data.test, plan.data.preprocessing, indices=order).images if plan.variants else None
    with NamedSteps(progress, "publish", count_steps(locked, plan.variants) + 1) as step:
        return publish(
            locked,
            issue.out,
            publication,
            seed=issue.seed,
            key=key,
            images=batch.images,
            variant_images=more,
            signing_key=signing_key,
            sealer=issue.sealer,
            created=created,
            overwrite=overwrite,
            on_step=step,
            compiled=compiled,
        )
