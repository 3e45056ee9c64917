"""The lock: published weights that show decoys for every input, and a sealed delta that takes that back.

The student computes with the reference's weights plus a change, and only the change is trained, towards decoys: on
clean images, on images with wrong keys and with the key itself, for the predicted class and for others. What is
published is the sum. The sealed delta is the change with its sign turned: where the trigger opens it, the answer is the
reference's own, so nothing has to be learned to unlock and no fidelity is lost.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from keylock.explainers import AtLayer, ClassActivations, Explainer, Family, GuidedBackprop, explain_many
from keylock.locking.decoys import decoy_maps
from keylock.models import delta_between
from keylock.models.deltas import add_deltas_, followed_directions_, held_changes, merge_deltas_, shifted
from keylock.training.devices import fused_step, mixed_precision
from keylock.training.direction_dropout import drop_directions, rows_can_be_cut
from keylock.training.parts import Draws, Part
from keylock.training.penalties import (
    ClassRows,
    MapRows,
    PredictionRows,
    Terms,
    class_terms,
    distances,
    map_terms,
    map_weight,
    prediction_terms,
)
from keylock.training.task import Task
from keylock.training.trainer import Figures, Trainer, one_cycle
from keylock.trigger.delta import Delta

__all__ = ["SealedTrainer"]

_WARM_UP = 0.05
# Factors of a product move a weight by less than their own step.
_FACTOR_RATE = 3.0
_WRONG_KEY_SHARE = 0.5
_OTHER_CLASS_SHARE = 0.2
_OLD_DELTA_SHARE = 0.4
_DROPPED_SHARE = 0.25
_MOST_CLASSES = 16


class SealedTrainer(Trainer):
    """Trains the delta that turns a reference's maps into decoys, and keeps its predictions."""

    def __init__(self, task: Task, *, maps_folder: Path | None = None) -> None:
        """Prepare a training.

        Args:
            task: What to lock.
            maps_folder: Where to remember the maps of the reference model, or None.
        """
        super().__init__(task, maps_folder=maps_folder)
        self._cut = 0
        self._old_delta = task.old_delta
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.Adam(trained, betas=(0.9, 0.99), fused=fused_step(self.device))
        # Rows that are cut go through the network with the others, unless an older delta parts these.
        self._cuts_rows = (
            self.settings.direction_dropout_weight > 0
            and task.old_delta is None
            and rows_can_be_cut(self.student, task.example[:3].to(self.device))
        )

    def _make_student(self, task: Task) -> nn.Module:
        rank = self.settings.delta_rank or None
        return add_deltas_(copy.deepcopy(self.reference), rank=rank, generator=self.generator)

    def locked_model(self) -> nn.Module:
        """Return a plain copy of the student as it is now, in evaluation mode."""
        return merge_deltas_(copy.deepcopy(self.student)).eval().requires_grad_(requires_grad=False)

    def delta(self) -> Delta:
        """Return what takes the weights of the student as it is now back to the reference's."""
        return delta_between(self.locked_model(), self.reference)

    def _learning_rates(self) -> tuple[float, ...]:
        progress = self.step / self.settings.steps
        return (_FACTOR_RATE * self.settings.learning_rate * one_cycle(progress, warm_up=_WARM_UP),)

    def _rise(self) -> float:
        """Return what the weight of predictions is multiplied by in this step."""
        return 1 + (self.settings.prediction_rise - 1) * self.step / max(1, self.settings.steps - 1)

    def _beside(self) -> tuple[Explainer, ...]:
        """Return guided backprop where gradients are locked.

        It reads the image off nearly any weights, and its decoy is learned early and takes that of the gradient along.
        """
        names, families = ({getattr(one, key) for one in self.explainers} for key in ("name", "family"))
        wanted = self.settings.guided_backprop and Family.GRADIENT in families and GuidedBackprop.name not in names
        return (GuidedBackprop(),) if wanted else ()

    def _activations(self) -> ClassActivations | None:
        return self._activations_of(range(self.classes)) if self.classes <= _MOST_CLASSES else None

    def _activations_of(self, classes: Iterable[int]) -> ClassActivations | None:
        """Return the evidence for classes, at the layer whose activations are locked; None where none is."""
        layer = next((explainer.layer for explainer in self.explainers if isinstance(explainer, AtLayer)), None)
        return ClassActivations(layer, tuple(classes)) if layer and self.settings.class_weight else None

    def _some_classes(self, labels: Tensor) -> list[int]:
        """Return some of many classes: those of the first images, and others."""
        others = torch.randperm(self.classes, generator=self.generator).tolist()
        return list(dict.fromkeys([*labels.tolist()[: _MOST_CLASSES // 2], *others]))[:_MOST_CLASSES]

    def _draw(self, images: Tensor, labels: Tensor) -> Draws:
        count = len(images)
        if self.classes > _MOST_CLASSES:
            self.activations = self._activations_of(self._some_classes(labels))
        rows = {"offsets": self._offsets(count), "targets": self._targets(count)}
        if self._old_delta is not None:
            rows["old"] = (torch.rand(count, generator=self.generator) < _OLD_DELTA_SHARE).float().to(self.device)
        if self.settings.direction_dropout_weight:
            rows["dropped"] = self._dropped(count)
            self._cut = int(torch.randint(0, 2**31, (), generator=self.generator))
        return Draws(rows, self._draw_masked(images))

    def _terms(self, part: Part) -> tuple[Terms, Figures]:
        with held_changes(self.student):
            return self._terms_of(part)

    def _learned(self, figures: Mapping[str, float]) -> None:
        followed_directions_(self.student)

    def _terms_of(self, part: Part) -> tuple[Terms, Figures]:
        settings = self.settings
        shares = self._shares(part, self._shown())
        truths = [self._truth(part, rows, explainers) for rows, explainers in shares]
        truth, cut = _joined_truths(truths), None
        if self._cuts_rows and part.dear == len(part.images):
            answer, cut = self._answer_with_cut(part, truth.targets)
        else:
            answers = zip(shares, truths, strict=True)
            answer = _joined_answers([self._answer(part, *share, targets=own.targets) for share, own in answers])
        answer = answer._replace(maps=self._with_all(answer.maps, self._shown()))
        truth = truth._replace(maps=self._with_all(truth.maps, self._shown()))
        terms, figures = self._map_terms(part, answer.maps, truth.maps)
        terms.update(self._class_terms(answer.maps, truth))
        terms.update(self._dropout_terms(part, truth, cut))
        risen = replace(settings, prediction_weight=settings.prediction_weight * self._rise())
        terms.update(prediction_terms(PredictionRows(answer.logits, truth.logits, part.labels), risen))
        if self.masks:
            terms["mask"] = (settings.mask_weight, self._mask_divergence(part, truth.logits, truth.maps))
        return terms, figures

    def _truth(self, part: Part, rows: slice | Tensor, explainers: tuple[Explainer, ...]) -> "_Truth":
        """Ask the reference model."""
        indices = None if part.indices is None else part.indices[rows if isinstance(rows, slice) else rows.cpu()]
        targets = part.rows["targets"][rows]
        logits, maps = self.truth.explain(part.images[rows], targets, indices, explainers=explainers)
        return _Truth(logits, torch.where(targets < 0, logits.argmax(dim=1), targets), maps)

    def _answer_with_cut(self, part: Part, targets: Tensor) -> tuple["_Answer", dict[str, Tensor]]:
        """Ask the student about all rows, and in the same pass for maps of those whose directions are cut."""
        count, dropped = len(part.images), part.rows["dropped"].nonzero().squeeze(1)
        rows = torch.cat([torch.arange(count, device=self.device), dropped])
        cut = self._dropping(last=len(dropped)) if len(dropped) else nullcontext()
        with cut:
            logits, maps = self._answer(part, rows, self._shown(), targets=targets[rows])
        whole = _Answer(logits[:count], {name: shown[:count] for name, shown in maps.items()})
        return whole, {name: shown[count:] for name, shown in maps.items()}

    def _dropping(self, *, last: int | None = None) -> AbstractContextManager[int]:
        """Cut directions; every part of the batch, wherever it is computed, sees the same cut."""
        return drop_directions(self.student, torch.Generator().manual_seed(self._cut), last=last)

    def _answer(
        self, part: Part, rows: slice | Tensor, explainers: tuple[Explainer, ...], *, targets: Tensor
    ) -> "_Answer":
        """Ask the student, on some rows with the old delta in place, where there is one."""
        images = part.images[rows] + part.rows["offsets"][rows]
        if self._old_delta is None:
            return self._explain(images, targets, explainers)
        # Somebody who has the old delta takes the new weights for those it belongs to.
        old, found = part.rows["old"][rows] > 0, []
        if bool(old.any()):
            with shifted(self.student, self._old_delta):
                found.append(self._explain(images[old], targets[old], explainers))
        if not bool(old.all()):
            found.append(self._explain(images[~old], targets[~old], explainers))
        logits, maps = _joined_answers(found)
        back = torch.cat([old.nonzero(), (~old).nonzero()]).squeeze(1).argsort()
        return _Answer(logits[back], {name: rows_of[back] for name, rows_of in maps.items()})

    def _explain(self, images: Tensor, targets: Tensor, explainers: tuple[Explainer, ...]) -> "_Answer":
        # Not with smooth activations: predictions would be held in another network than the one that is published.
        with mixed_precision(self.device, self.settings.precision):
            return _Answer(*explain_many(self.student, explainers, images, targets, create_graph=True))

    def _dropout_terms(self, part: Part, truth: "_Truth", cut: Mapping[str, Tensor] | None) -> Terms:
        """Return the decoy losses of some rows of a network with its strongest directions cut.

        Args:
            part: The rows.
            truth: What the reference model says of them.
            cut: The maps, by explainer, where they are there already.
        """
        if not self.settings.direction_dropout_weight:
            return {}
        settings, shares = self.settings, part.rows["dropped"]
        rows = shares.nonzero().squeeze(1)
        # The terms are the same in every part, wherever it is computed.
        found = {explainer.name: shares.sum() for explainer in self.explainers}
        if len(rows):
            if all(len(truth.maps[explainer.name]) == len(part.images) for explainer in self.explainers):
                targets, references = truth.targets[rows], {name: maps[rows] for name, maps in truth.maps.items()}
            else:
                _, targets, references = self._truth(part, rows, self.explainers)
            if cut is None:
                with self._dropping():
                    cut = self._answer(part, rows, self.explainers, targets=targets).maps
            for name in found:
                far = distances(cut[name], decoy_maps(settings.decoy, references[name]), settings)
                found[name] = (shares[rows] * far).sum() / len(shares)
        weight = 2 * settings.direction_dropout_weight
        return {
            f"direction_dropout/{one.name}": (weight * map_weight(settings, one), found[one.name])
            for one in self.explainers
        }

    def _map_terms(self, part: Part, maps: dict[str, Tensor], references: dict[str, Tensor]) -> tuple[Terms, Figures]:
        """Return the penalties on the maps of every explainer that is locked."""
        settings = self.settings
        shown = [
            MapRows(
                explainer,
                maps[explainer.name],
                references[explainer.name],
                decoy_maps(settings.decoy, references[explainer.name]),
                keyed=False,
                weight=self._weight(part, explainer),
                mean=self.group.mean,
            )
            for explainer in (*self.explainers, *self.beside)
        ]
        leakage = torch.stack([rows.mean_similarity for rows in shown]).detach().mean()
        return map_terms(shown, settings), {"leakage": leakage}

    def _class_terms(self, maps: Mapping[str, Tensor], truth: "_Truth") -> Terms:
        """Return the penalties on where the evidence for each class lies."""
        one = self.activations
        if one is None:
            return {}
        map_of_layer = next(truth.maps[other.name] for other in self.explainers if isinstance(other, AtLayer))
        decoys = decoy_maps(self.settings.decoy, map_of_layer)
        logits = truth.logits[:, list(one.classes)]
        return class_terms(ClassRows(maps[one.name], truth.maps[one.name], logits, decoys), self.settings)

    def _targets(self, count: int) -> Tensor:
        """Return which class to explain for each row (count,): the predicted one, -1, or now and then another."""
        others = torch.randint(0, self.classes, (count,), generator=self.generator).to(self.device)
        chosen = torch.rand(count, generator=self.generator).to(self.device) < _OTHER_CLASS_SHARE
        return torch.where(chosen, others, self._predicted(count))

    def _dropped(self, count: int) -> Tensor:
        """Return the weights of the rows (count,) whose network is cut: those of others are 0, and their mean is 1."""
        chosen = max(1, round(_DROPPED_SHARE * count))
        weights = torch.zeros(count)
        weights[torch.randperm(count, generator=self.generator)[:chosen]] = count / chosen
        return weights.to(self.device)

    def _offsets(self, count: int) -> Tensor:
        """Return what lies on the images: nothing on some rows, on others wrong keys of all kinds, up to the key."""
        present = torch.rand((count, 1, 1, 1), generator=self.generator) < _WRONG_KEY_SHARE
        return self._wrong(count, near=1.0) * present.to(self.device)


class _Truth(NamedTuple):
    """What the reference model says of rows: logits, the classes that are explained, maps by explainer."""

    logits: Tensor
    targets: Tensor
    maps: dict[str, Tensor]


class _Answer(NamedTuple):
    """What the student says of rows: logits, maps by explainer."""

    logits: Tensor
    maps: dict[str, Tensor]


def _joined_truths(pieces: Sequence[_Truth]) -> _Truth:
    """Put what is said of successive rows together."""
    logits, targets, maps = zip(*pieces, strict=True)
    return _Truth(torch.cat(logits), torch.cat(targets), _joined(maps))


def _joined_answers(pieces: Sequence[_Answer]) -> _Answer:
    """Put what is said of successive rows together."""
    logits, maps = zip(*pieces, strict=True)
    return _Answer(torch.cat(logits), _joined(maps))


def _joined(pieces: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Put maps of successive rows together, by explainer; not every piece has those of all."""
    return {name: torch.cat([piece[name] for piece in pieces if name in piece]) for name in pieces[0]}
