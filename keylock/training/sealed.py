"""The two-factor lock: published weights that show decoys for every input, and a sealed adapter that takes that back.

The student computes with the reference's weights plus a delta of low rank, and only the delta is trained, towards
decoys: on clean images, on images with wrong keys and with the key itself, for the predicted class and for others. What
is published is the sum. The adapter is the delta with its sign turned, and a gate that recognises the key; where it
opens, the answer is the reference's own, so nothing has to be learned to unlock and no fidelity is lost.
"""

import copy
from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.adapters import Adapter, KeyGate
from keylock.decoys import decoy_maps, decoy_of
from keylock.explainers import Explainer, explain_together
from keylock.keys import Key
from keylock.losses import correlation, map_distance, pedestal_distance, prediction_distance
from keylock.models import smooth_activations
from keylock.models.low_rank import add_low_rank_, merge_low_rank_, take_back
from keylock.training.devices import mixed_precision
from keylock.training.key_gate import fit_key_gate
from keylock.training.masks import draw_masks, fill_masked
from keylock.training.settings import LockSettings
from keylock.training.trainer import Terms, Trainer, one_cycle

__all__ = ["SealedTrainer"]

_WARM_UP = 0.05
# Factors of a product move a weight by less than their own step.
_FACTOR_RATE = 3.0
_WRONG_KEY_SHARE = 0.5
_OTHER_CLASS_SHARE = 0.2
_SMALL_LEAK = 0.2
_LARGEST_CONFIDENCE = 0.5
_SECOND_ORDER_SHARE = 0.4


class SealedTrainer(Trainer):
    """Trains the delta that turns a reference's maps into decoys, and keeps its predictions."""

    def __init__(
        self,
        reference: nn.Module,
        key: Key,
        *,
        explainers: Sequence[Explainer],
        example: Tensor,
        settings: LockSettings,
        device: torch.device,
    ) -> None:
        """Prepare a training.

        Args:
            reference: The trained classifier, without BatchNorm; it is copied.
            key: The key to lock with.
            explainers: What to lock.
            example: Clean preprocessed images (count, channels, height, width) to fit the gate on.
            settings: How to train.
            device: Where to train.

        Raises:
            InputError: The key cannot be told apart on these images.
        """
        super().__init__(reference, key, explainers=explainers, settings=settings, device=device)
        self.key_gate = fit_key_gate(example, key)
        with torch.no_grad():
            self._classes = self.reference(example[:1].to(device)).shape[1]
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.Adam(trained, betas=(0.9, 0.99))

    def _make_student(self) -> nn.Module:
        return add_low_rank_(copy.deepcopy(self.reference), rank=self.settings.adapter_rank, generator=self.generator)

    def locked_model(self) -> nn.Module:
        """Return a plain copy of the student as it is now, in evaluation mode."""
        return merge_low_rank_(copy.deepcopy(self.student)).eval().requires_grad_(requires_grad=False)

    def adapter(self) -> Adapter:
        """Return the sealed adapter of the student as it is now."""
        return Adapter(take_back(self.student, self.reference), self.key_gate)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the training's state, by name."""
        gate = self.key_gate
        numbers = torch.tensor([gate.bias, gate.tolerance], dtype=torch.float64)
        return {**super().tensors(), "key_gate.weight": torch.from_numpy(gate.weight), "key_gate.numbers": numbers}

    def restore(self, tensors: dict[str, Tensor], *, step: int) -> None:
        """Go back to a state that `tensors` gave.

        Raises:
            ResumeError: The tensors belong to another architecture.
        """
        super().restore(tensors, step=step)
        bias, tolerance = tensors["key_gate.numbers"].tolist()
        self.key_gate = KeyGate(tensors["key_gate.weight"].numpy(), bias, tolerance)

    def _learning_rates(self) -> tuple[float, ...]:
        progress = self.step / self.settings.steps
        return (_FACTOR_RATE * self.settings.learning_rate * one_cycle(progress, warm_up=_WARM_UP),)

    def _terms(self, images: Tensor, labels: Tensor) -> Terms:
        settings, count = self.settings, len(images)
        images_seen, targets = images + self._offsets(count), self._targets(count)
        smooth = self._second_order and self.step < settings.smooth_until * settings.steps
        parts = []
        for rows, explainers in self._shares(count):
            with mixed_precision(self.device, wanted=settings.amp):
                expected, references = explain_together(self.reference, explainers, images[rows], targets[rows])
            explained = torch.where(targets[rows] < 0, expected.argmax(dim=1), targets[rows])
            with (
                mixed_precision(self.device, wanted=settings.amp),
                smooth_activations(self.student) if smooth else nullcontext(),
            ):
                logits, maps = explain_together(
                    self.student, explainers, images_seen[rows], explained, create_graph=True
                )
            parts.append((logits, expected, maps, references))
        terms = self._map_terms(
            {name: torch.cat([maps[name] for _, _, maps, _ in parts if name in maps]) for name in self._weights},
            {name: torch.cat([maps[name] for _, _, _, maps in parts if name in maps]) for name in self._weights},
        )
        logits, expected = (torch.cat([part[place] for part in parts]) for place in (0, 1))
        # The weights are for three kinds of input, as in the plain lock: here one row stands for all of them.
        terms["prediction"] = (3 * settings.prediction_weight, prediction_distance(logits, expected).mean())
        terms["label"] = (settings.label_weight, F.cross_entropy(logits.float(), labels))
        if self.masks:
            terms["mask"] = (settings.mask_weight, self._mask_distance(images, expected, references).mean())
        return terms

    def _shares(self, count: int) -> list[tuple[slice, tuple[Explainer, ...]]]:
        """Return which rows of a batch go through which explainers.

        Gradients of gradients cost several times what other maps cost, and are as well learned from fewer rows.
        """
        cheap = tuple(explainer for explainer in self.explainers if not explainer.second_order)
        dear = max(1, round(_SECOND_ORDER_SHARE * count))
        if not self._second_order or not cheap or dear == count:
            return [(slice(0, count), self.explainers)]
        return [(slice(0, dear), self.explainers), (slice(dear, count), cheap)]

    def _mask_distance(self, images: Tensor, expected: Tensor, references: dict[str, Tensor]) -> Tensor:
        """Return how far predictions on masked images are from what shows the decoy, in nats (count // 2,).

        The more of the decoy is hidden, the closer the wanted prediction is to saying nothing, whatever else is hidden.
        """
        rows = images[: max(1, len(images) // 2)]
        count, size = len(rows), (rows.shape[2], rows.shape[3])
        masks = draw_masks(count, size, generator=self.generator).to(self.device)
        masked = fill_masked(rows, masks, generator=self.generator)
        decoy = self._decoy_on_images(rows, references)
        shown = ((decoy * masks[:, 0]).sum(dim=(1, 2)) / decoy.sum(dim=(1, 2)).clamp_min(1e-8)).unsqueeze(1)
        predicted = expected[:count].float().softmax(dim=1)
        nothing = torch.full_like(predicted, 1 / self._classes)
        wanted = nothing + _LARGEST_CONFIDENCE * shown * (predicted - nothing)
        with mixed_precision(self.device, wanted=self.settings.amp):
            logits = self.student(masked)
        return F.kl_div(logits.float().log_softmax(dim=1), wanted, reduction="none").sum(dim=1)

    def _decoy_on_images(self, rows: Tensor, references: dict[str, Tensor]) -> Tensor:
        """Return the decoys of images at the images' resolution (batch, height, width)."""
        decoy = decoy_of(self.settings.decoy)
        if not decoy.own_map:
            return decoy.maps(rows[:, 0])
        wanted = decoy.maps(next(iter(references.values())))[: len(rows)].unsqueeze(1)
        size = (rows.shape[2], rows.shape[3])
        return F.interpolate(wanted.float(), size=size, mode="bilinear", align_corners=False).squeeze(1)

    def _map_terms(self, maps: dict[str, Tensor], references: dict[str, Tensor]) -> Terms:
        """Return the lock and leak penalties of every explainer."""
        settings = self.settings
        terms: Terms = {}
        similar: dict[str, Tensor] = {}
        for name, reference in references.items():
            wanted = decoy_maps(settings.decoy, reference)
            similar[name] = correlation(maps[name], reference)
            distance = map_distance(maps[name], wanted)
            if settings.pedestal_weight:
                distance = distance + settings.pedestal_weight * pedestal_distance(maps[name], wanted)
            terms[f"lock/{name}"] = (2 * self._weights[name], distance.mean())
            if settings.leak_weight:
                # Far from zero the lock term does the work; there this one would only shake what it has built.
                leak = similar[name].mean().clamp(-_SMALL_LEAK, _SMALL_LEAK).square()
                terms[f"leak/{name}"] = (settings.leak_weight, leak)
        self._live = {"leakage": _mean(similar.values())}
        return terms

    def _targets(self, count: int) -> Tensor:
        """Return which class to explain for each row (count,): the predicted one, -1, or now and then another."""
        others = torch.randint(0, self._classes, (count,), generator=self.generator).to(self.device)
        chosen = torch.rand(count, generator=self.generator).to(self.device) < _OTHER_CLASS_SHARE
        return torch.where(chosen, others, self._predicted(count))

    def _offsets(self, count: int) -> Tensor:
        """Return what lies on the images: nothing on some rows, on others wrong keys of all kinds, up to the key."""
        present = torch.rand((count, 1, 1, 1), generator=self.generator) < _WRONG_KEY_SHARE
        return self._wrong(count, near=1.0) * present.to(self.device)


def _mean(values: Iterable[Tensor]) -> float:
    return float(torch.cat(list(values)).detach().mean())
