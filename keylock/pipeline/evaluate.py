"""What `keylock evaluate` does, without the command line: open a bundle and its reference, and measure the lock."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keylock.bundle.manifest import Figure
from keylock.bundle.sealing import Sealer
from keylock.data import DataSource
from keylock.data.batches import load_batch
from keylock.data.sets import stratified_order
from keylock.errors import DataError, InputError
from keylock.evaluation import (
    EvaluatedExplainer,
    Evaluation,
    GateCurve,
    Selection,
    Subject,
    find_reference,
    gate_curve,
    load_reference,
    select,
)
from keylock.evaluation.gate import POINTS
from keylock.explainers import Explainer, Family
from keylock.torch_runtime.locked_model import LockedModel, load_bundle
from keylock.training import NamedSteps, Progress, resolve_device
from keylock.trigger.keys import KeySeed

__all__ = ["EvaluatePlan", "Gallery", "evaluate"]


@dataclass(frozen=True, kw_only=True)
class EvaluatePlan:
    """What to measure.

    Attributes:
        bundle: The bundle, folder or `.klb` file.
        data: Its test images are measured on; its classes are those of the bundle.
        reference: The reference model's weights; by default those in the work folder beside the bundle.
        explainers: Take these alone; by default those that were locked.
        unseen: Take all others that fit the architecture too.
        images: Test images to measure on, at most.
        faithfulness_images: How many of them deletion and insertion are measured on; 0 leaves both out.
        gate_images: How many of them the gate curve is measured on; 0 leaves it out.
        slow_images: How many of them explainers are measured on that ask for hundreds of predictions an image, at most
            also where the two numbers above are larger. Their gate is not measured.
        seed: Of the choice of images, wrong keys and near misses.
        device: Where to compute.
    """

    bundle: Path
    data: DataSource
    reference: Path | None = None
    explainers: tuple[str, ...] | None = None
    unseen: bool = False
    images: int = 500
    faithfulness_images: int = 64
    gate_images: int = 64
    slow_images: int = 24
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class Gallery:
    """Some images with their maps, to be drawn.

    Attributes:
        pixels: (count, height, width, channels), uint8.
        samples: For each explainer's label maps (count, h, w) by `reference`, `keyed`, `keyless`, `wrong_key`.
    """

    pixels: NDArray[np.uint8]
    samples: Mapping[str, Mapping[str, Tensor]]


def evaluate(plan: EvaluatePlan, *, secret: KeySeed | Sealer, progress: Progress) -> tuple[Evaluation, Gallery]:
    """Measure the lock of a bundle.

    Args:
        plan: What to measure.
        secret: The key seed, or what opens the sealed key.
        progress: Hears about every explainer.

    Returns:
        What was found, and some images with their maps.

    Raises:
        BundleError: The bundle is refused.
        DataError: The data does not fit the model.
        InputError: A number is out of range, or an explainer is unknown.
        ModelError: The reference is missing or not that of the bundle.
        UnsealError: The secret is not that of the bundle.
    """
    _check(plan)
    device = resolve_device(plan.device)
    locked = load_bundle(plan.bundle, key=secret)
    reference = load_reference(plan.reference or find_reference(plan.bundle), locked.manifest).to(device)
    subject, pixels = _subject(plan, locked, reference, device)
    selection = select(locked.module, locked.explainers, subject.images, names=plan.explainers, unseen=plan.unseen)
    figures, samples = _measure(plan, subject, selection, progress)
    gate = _measure_gate(plan, subject, selection, progress)
    evaluation = Evaluation(
        model=locked.manifest.name,
        model_digest=locked.manifest.model_digest,
        about=subject.about,
        explainers=tuple(
            EvaluatedExplainer(label, explainer.name, explainer.parameters, locked=label in selection.locked)
            for label, explainer in _labelled(selection)
        ),
        figures=figures,
        skipped=selection.skipped,
        gate=gate,
    )
    return evaluation, Gallery(pixels, samples)


def _check(plan: EvaluatePlan) -> None:
    for name, value, least in (
        ("images", plan.images, 2),
        ("slow_images", plan.slow_images, 2),
        ("faithfulness_images", plan.faithfulness_images, 0),
        ("gate_images", plan.gate_images, 0),
    ):
        if value < least:
            raise InputError(f"{name} is {value}: take {least} at least")
    if plan.gate_images == 1:
        raise InputError("a gate curve on 1 image has no chance beside it: take 2 images, or 0 for no curve")


def _subject(
    plan: EvaluatePlan, locked: LockedModel, reference: torch.nn.Module, device: torch.device
) -> tuple[Subject, NDArray[np.uint8]]:
    test, preprocessing = plan.data.test, locked.preprocessing
    if len(plan.data.classes) != len(locked.classes):
        raise DataError(
            f"{plan.data.name} has {len(plan.data.classes)} classes, the model {locked.manifest.name} has "
            f"{len(locked.classes)}: give the data it was trained for"
        )
    rows = stratified_order(test.labels, seed=plan.seed)[: plan.images]
    batch = load_batch(test, preprocessing, indices=rows)
    masks = test.take(rows).resized_masks(preprocessing)
    if locked.key is None:
        raise InputError("an evaluation needs the key: give the key seed or what opens the sealed key")
    subject = Subject(
        module=locked.opened.to(device),
        reference=reference,
        key=locked.key,
        images=batch.images.to(device),
        labels=batch.labels.to(device),
        masks=None if masks is None else torch.from_numpy(masks).to(device),
        seed=plan.seed,
        about=f"{len(rows)} test images of {plan.data.name}",
    )
    return subject, test.resized(preprocessing, rows[:6])


def _measure(
    plan: EvaluatePlan, subject: Subject, selection: Selection, progress: Progress
) -> tuple[tuple[Figure, ...], dict[str, Mapping[str, Tensor]]]:
    labelled = _labelled(selection)
    counts = {label: plan.slow_images if _is_slow(explainer) else None for label, explainer in labelled}
    samples = {}
    with NamedSteps(progress, "evaluate", 1 + sum(subject.count_parts(count) for count in counts.values())) as step:
        step("predictions")
        figures = [*subject.predictions(), *subject.object_area()]
        for label, explainer in labelled:
            compared = subject.compare(label, explainer, count=counts[label], on_part=partial(step, label))
            figures += compared.figures
            samples[label] = compared.samples
    if plan.faithfulness_images:
        with NamedSteps(progress, "faithfulness", len(labelled)) as step:
            for label, explainer in labelled:
                step(label)
                count = plan.faithfulness_images
                figures += subject.faithfulness(
                    label, explainer, count=min(count, plan.slow_images) if _is_slow(explainer) else count
                )
    return tuple(figures), samples


def _measure_gate(plan: EvaluatePlan, subject: Subject, selection: Selection, progress: Progress) -> GateCurve | None:
    """Measure the gate by the locked explainers; there is none to speak of where none was chosen."""
    quick = tuple(explainer for explainer in selection.locked.values() if not _is_slow(explainer))
    if not plan.gate_images or not quick:
        return None
    progress.start("gate", len(quick) * POINTS, 0)
    curve = gate_curve(
        subject.module,
        subject.reference,
        subject.key,
        quick,
        subject.images[: plan.gate_images],
        generator=torch.Generator().manual_seed(plan.seed),
        on_point=lambda _point: progress.advance({}),
    )
    progress.finish()
    return curve


def _labelled(selection: Selection) -> list[tuple[str, Explainer]]:
    return [*selection.locked.items(), *selection.unseen.items()]


def _is_slow(explainer: Explainer) -> bool:
    """Whether an explainer asks for hundreds of predictions an image."""
    return explainer.family is Family.PERTURBATION
