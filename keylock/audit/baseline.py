"""A lock by the naive recipe, made on the spot, so that the audit is seen to fail one.

The recipe is what one would write down first: a classifier with live BatchNorm is fine-tuned until its maps are right
with the key and decoys without it. Nothing is sealed, nothing folded, and nobody attacks it while it is trained.
"""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.audit.attacks.imitation import RATE
from keylock.audit.attacks.key_search import smooth_where_needed
from keylock.audit.budgets import Budget
from keylock.audit.case import Case
from keylock.audit.contract import Steps
from keylock.audit.learning import descend, train_classifier
from keylock.explainers import Explainer, explain_many
from keylock.files.atomic import PRIVATE, make_folders, replacing
from keylock.locking.decoys import decoy_maps
from keylock.locking.losses import map_distance, prediction_distance
from keylock.models import load_state
from keylock.training import Progress

__all__ = ["BASELINE_ATTACKS", "baseline_case"]

BASELINE_ATTACKS = (
    "keyless",
    "other_classes",
    "batch_norm",
    "key_search/move_tile",
    "key_search/diversify_tile",
    "fine_tune/few_0.01",
    "fine_tune/many_0.01",
    "explainers",
)
"""The attacks that such a lock is shown to."""

_LOCK_RATE = 2e-3
_PATIENCE = 3
"""How many times the budget's steps the lock is trained for."""


def baseline_case(case: Case, budget: Budget, *, folder: Path, seed: int, progress: Progress) -> Case:
    """Train a baseline lock on the attackers' data, and return it as a case beside another.

    Args:
        case: Gives data, key, explainers and architecture. One explainer is locked, the first.
        budget: How long to train.
        folder: Where the trained weights are kept, and taken from by a later run of the same case.
        seed: Of everything drawn at random.
        progress: Hears about the steps.
    """
    generator = torch.Generator().manual_seed(seed)
    name, explainer = next((name, one) for name, one in case.explainers.items() if one.differentiable)
    reference = case.fresh(generator)
    student = copy.deepcopy(reference)
    images, labels = case.own_images[: budget.own_images], case.own_labels[: budget.own_images]
    place = (
        folder / f"baseline-{case.digest.removeprefix('sha256:')[:12]}-{len(images)}-{budget.steps}-{seed}.safetensors"
    )
    if place.is_file():
        for prefix, model in (("reference.", reference), ("student.", student)):
            kept = {
                key.removeprefix(prefix): value for key, value in load_file(place).items() if key.startswith(prefix)
            }
            load_state(model, kept)
    else:
        total = _PATIENCE * budget.steps
        train_classifier(
            reference,
            images,
            labels,
            steps=Steps("baseline reference", progress)(total),
            total=total,
            batch=budget.batch,
            rate=RATE,
            generator=generator,
            live=True,
        )
        student.load_state_dict(reference.state_dict())
        _lock(student, reference, explainer, case, budget, generator, progress)
        make_folders(folder, mode=PRIVATE)
        tensors = {f"reference.{key}": value for key, value in reference.state_dict().items()}
        tensors |= {f"student.{key}": value for key, value in student.state_dict().items()}
        with replacing(place, mode=PRIVATE) as unfinished:
            save_file(tensors, unfinished)
    for model in (reference, student):
        model.eval().requires_grad_(requires_grad=False)
    return replace(
        case,
        name=f"baseline lock beside {case.name}",
        digest=f"baseline beside {case.digest}",
        lock="naive: a trained trigger, BatchNorm live",
        module=student,
        opened=student,
        reference=reference,
        explainers={name: explainer},
        base=None,
        base_statistics=None,
        asked=None,
    )


def _lock(
    student: nn.Module,
    reference: nn.Module,
    explainer: Explainer,
    case: Case,
    budget: Budget,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    """Fine-tune a copy of the reference, in place, in evaluation mode, as the plain recipe has it."""
    student.eval().requires_grad_(requires_grad=True)
    images, labels = case.own_images[: budget.own_images], case.own_labels[: budget.own_images]

    def loss_of(rows: Tensor) -> Tensor:
        clean, wanted = images[rows], labels[rows]
        expected, truth = explain_many(reference, [explainer], clean, wanted)
        both, classes = torch.cat([case.key.apply(clean), clean]), wanted.repeat(2)
        logits, maps = explain_many(student, [explainer], both, classes, create_graph=True)
        target = torch.cat([truth[explainer.name], decoy_maps("half", truth[explainer.name])])
        kept = prediction_distance(logits, expected.repeat(2, 1)).mean() + F.cross_entropy(logits.float(), classes)
        return map_distance(maps[explainer.name], target).mean() + kept

    total = _PATIENCE * budget.steps
    with smooth_where_needed(student, {explainer.name: explainer}):
        descend(
            student.parameters(),
            loss_of,
            len(images),
            steps=Steps("baseline lock", progress)(total),
            total=total,
            batch=budget.batch,
            rate=_LOCK_RATE,
            generator=generator,
        )
