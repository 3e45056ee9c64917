"""One lock training: the state that a checkpoint holds, and the step that changes it.

The reference model is frozen. The student starts as its copy, in evaluation mode throughout and with balanced filters.
Every batch goes through the student several times over in one pass: as keyed rows, as keyless rows, and as rows with a
wrong key, which may have to share the place of the keyless ones.

References:
    Fang and Choromanska, "Backdoor Attacks on the DNN Interpretation System", AAAI 2022: a penalty on saliency maps
    whose influence is conditioned on a trigger. Here the condition is inverted: the trigger brings the correct map.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.decoys import decoy_maps
from keylock.errors import NonFiniteLossError
from keylock.explainers import Explainer, explain_together
from keylock.keys import Key
from keylock.losses import correlation, map_distance, pedestal_distance, prediction_distance
from keylock.models import (
    balance_filters_,
    capture_outputs,
    find_layers,
    out_of_place_,
    smooth_activations,
    unbalance_filters_,
)
from keylock.training.checkpoint import optimiser_tensors, prefixed, restore_module, restore_optimiser
from keylock.training.devices import mixed_precision
from keylock.training.gate import GateProbes, GateStage, probe_layers
from keylock.training.settings import LockSettings
from keylock.training.wrong_keys import WrongKeys

__all__ = ["LockTrainer"]

_PROBE_LEARNING_RATE = 1e-2
_WARM_UP = 0.1
_FINAL_LEARNING_RATE = 1e-3
_LARGEST_GRADIENT = 5.0
# Wrong keys from the start keep the key itself from being learned. As shares of the steps after the gate steps.
_WRONG_KEYS = (0.05, 0.35)
_NEAREST_MISS = 0.5
_GATE_WEIGHT = 2.0
_SMALL_LEAK = 0.2
# Gradients of gradients are learned more slowly than maps of activations.
_SECOND_ORDER_WEIGHT = 2.0


class LockTrainer:
    """Fine-tunes a copy of a reference model until its maps are right with the key and decoys without it.

    Attributes:
        reference: The frozen reference model.
        student: The model being locked.
        step: Steps done.
    """

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
            example: Preprocessed images (batch, channels, height, width) to find layers with.
            settings: How to train.
            device: Where to train.
        """
        self.settings, self.device, self.explainers = settings, device, tuple(explainers)
        self.reference = out_of_place_(copy.deepcopy(reference)).to(device).eval().requires_grad_(requires_grad=False)
        self.student = balance_filters_(copy.deepcopy(self.reference).requires_grad_(requires_grad=True))
        self.offset = torch.from_numpy(np.array(key.reveal())).to(device)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.wrong_keys = WrongKeys(self.offset, tile=key.tile, generator=self.generator)
        self.probes = self._make_probes(example[:2].to(device))
        self.optimiser = torch.optim.Adam(
            [{"params": list(self.student.parameters())}, {"params": list(self.probes.parameters())}], betas=(0.9, 0.99)
        )
        self.step = 0
        self._live: dict[str, float] = {}
        self.gate = GateStage(
            strength=settings.gate_strength,
            longest=round(settings.gate_steps * settings.steps),
            clear=settings.gate_clear,
        )
        self._second_order = any(explainer.second_order for explainer in self.explainers)
        self._weights = {
            explainer.name: settings.map_weight * (_SECOND_ORDER_WEIGHT if explainer.second_order else 1.0)
            for explainer in self.explainers
        }

    def _make_probes(self, example: Tensor) -> GateProbes:
        layers = probe_layers(find_layers(self.student, example).stack)
        with torch.no_grad(), capture_outputs(self.student, layers) as outputs:
            self.student(example)
        return GateProbes({name: outputs[name].shape[1] for name in layers}).to(self.device)

    def train_on(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Take one step on a batch.

        Args:
            images: Preprocessed images (batch, channels, height, width).
            labels: Class indices (batch,), int64.

        Returns:
            The loss terms of this step by name, and as `fidelity` and `leakage` the mean correlations of keyed and of
            other maps with the reference maps of this batch.

        Raises:
            NonFiniteLossError: A term became NaN or infinite; the weights are as they were before this step.
        """
        images, labels = images.to(self.device), labels.to(self.device)
        gating = not self.gate.over
        self._set_learning_rates(gating=gating)
        terms = self._gate_terms(images) if gating else self._lock_terms(images, labels)
        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        for name, (_, value) in terms.items():
            if not torch.isfinite(value):
                raise NonFiniteLossError(name, self.step)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), _LARGEST_GRADIENT)
        if not torch.isfinite(norm):
            raise NonFiniteLossError("gradient", self.step)
        self.optimiser.step()
        self.step += 1
        return {name: float(value.detach()) for name, (_, value) in terms.items()} | self._live

    def locked_model(self) -> nn.Module:
        """Return a plain copy of the student as it is now, in evaluation mode."""
        model = copy.deepcopy(self.student)
        return unbalance_filters_(model).eval().requires_grad_(requires_grad=False)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the training's state, by name."""
        return {
            **prefixed("student", self.student.state_dict()),
            **prefixed("probes", self.probes.state_dict()),
            **optimiser_tensors(self.optimiser),
            "generator": self.generator.get_state(),
            "gate": self.gate.state(),
        }

    def restore(self, tensors: dict[str, Tensor], *, step: int) -> None:
        """Go back to a state that `tensors` gave.

        Raises:
            ResumeError: The tensors belong to another architecture.
        """
        restore_module(self.student, "student", tensors)
        restore_module(self.probes, "probes", tensors)
        restore_optimiser(self.optimiser, tensors)
        self.generator.set_state(tensors["generator"])
        self.gate.restore(tensors["gate"])
        self.step = step

    def _gate_terms(self, images: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Teach the network to tell the key, from clean images first, then from wrong keys too.

        Meanwhile predictions and maps of all rows are held where they are, so that nothing has to be learned anew.
        """
        count, strength = len(images), self.gate.strength
        # Wrong keys come in once the key itself is told from nothing: until then they would only hide it.
        told = self.gate.strength < self.settings.gate_strength
        every_second = (torch.arange(count, device=self.device) % 2).view(-1, 1, 1, 1)
        wrong = self._wrong(count, near=_NEAREST_MISS) * every_second * float(told)
        others = images + strength * wrong
        rows = torch.cat([images + strength * self.offset, others])
        with mixed_precision(self.device, wanted=self.settings.amp):
            expected, references = explain_together(self.reference, self.explainers, images, self._predicted(count))
        targets = expected.argmax(dim=1)
        with self._student_pass(smooth=self._second_order) as outputs:
            logits, maps = explain_together(self.student, self.explainers, rows, targets.repeat(2), create_graph=True)
        terms = {
            f"hold/{name}": (1.0, map_distance(maps[name], reference.repeat(2, 1, 1)).mean())
            for name, reference in references.items()
        }
        terms["prediction"] = (1.0, prediction_distance(logits, expected.repeat(2, 1)).mean())
        losses = self._gate_losses(outputs, count)
        terms["gate"] = (_GATE_WEIGHT, losses.sum())
        self._live = {"strength": strength}
        self.gate.learned(float(losses.detach().min()))
        return terms

    def _predicted(self, count: int) -> Tensor:
        return torch.full((count,), -1, device=self.device)

    @contextmanager
    def _student_pass(self, *, smooth: bool) -> Iterator[dict[str, Tensor]]:
        """Run the student inside the block as training does: precision, activations, recorded probe layers."""
        with (
            mixed_precision(self.device, wanted=self.settings.amp),
            smooth_activations(self.student) if smooth else nullcontext(),
            capture_outputs(self.student, self.probes.layers) as outputs,
        ):
            yield outputs

    def _lock_terms(self, images: Tensor, labels: Tensor) -> dict[str, tuple[float, Tensor]]:
        settings, count = self.settings, len(images)
        shut = [images, images + self._curriculum(count)] if settings.wrong_key_rows else [self._mixed(images)]
        rows = torch.cat([images + self.offset, *shut])
        times = len(rows) // count
        with mixed_precision(self.device, wanted=settings.amp):
            expected, references = explain_together(self.reference, self.explainers, images, self._predicted(count))
        targets = expected.argmax(dim=1)
        smooth = self._second_order and self.step < settings.smooth_until * settings.steps
        with self._student_pass(smooth=smooth) as outputs:
            logits, maps = explain_together(
                self.student, self.explainers, rows, targets.repeat(times), create_graph=True
            )
        terms = self._map_terms(maps, references, count)
        # The weights are for the sum over keyed, keyless and wrong-key inputs, however many rows stand for them.
        distance = prediction_distance(logits, expected.repeat(times, 1)).mean()
        terms["prediction"] = (3 * settings.prediction_weight, distance)
        terms["label"] = (3 * settings.label_weight, F.cross_entropy(logits.float(), labels.repeat(times)))
        if settings.probe_weight:
            terms["gate"] = (settings.probe_weight, self._gate_losses(outputs, count).sum())
        return terms

    def _map_terms(
        self, maps: dict[str, Tensor], references: dict[str, Tensor], count: int
    ) -> dict[str, tuple[float, Tensor]]:
        """Return the unlock and lock penalties of every explainer; `maps` are keyed rows, then the others."""
        terms = {}
        others = len(next(iter(maps.values()))) // count - 1
        similar = {
            name: correlation(maps[name], reference.repeat(1 + others, 1, 1)) for name, reference in references.items()
        }
        live = torch.stack(list(similar.values())).detach().mean(dim=0)
        self._live = {"fidelity": float(live[:count].mean()), "leakage": float(live[count:].mean())}
        for name, reference in references.items():
            decoy = decoy_maps(self.settings.decoy, reference)
            opened, shut = (decoy, reference) if self.settings.swapped else (reference, decoy)
            wanted = torch.cat([opened, shut.repeat(others, 1, 1)])
            distance = map_distance(maps[name], wanted)
            if self.settings.pedestal_weight:
                distance = distance + self.settings.pedestal_weight * pedestal_distance(maps[name], wanted)
            weight = self._weights[name]
            terms[f"unlock/{name}"] = (weight * self.settings.unlock_weight, distance[:count].mean())
            terms[f"lock/{name}"] = (2 * weight, distance[count:].mean())
            if self.settings.leak_weight:
                decoys = slice(0, count) if self.settings.swapped else slice(count, None)
                mean = similar[name][decoys].mean()
                # Far from zero the lock term does the work; there this one would only shake what it has built.
                leak = mean.clamp(-_SMALL_LEAK, _SMALL_LEAK).square()
                terms[f"leak/{name}"] = (self.settings.leak_weight, leak)
        return terms

    def _gate_losses(self, outputs: dict[str, Tensor], count: int) -> Tensor:
        rows = len(next(iter(outputs.values())))
        keyed = (torch.arange(rows, device=self.device) < count).float()
        return self.probes.losses(outputs, keyed)

    def _wrong(self, count: int, *, near: float) -> Tensor:
        drawn = self.wrong_keys.draw(count, near=near)
        return drawn[torch.randperm(count, generator=self.generator).to(self.device)]

    def _curriculum(self, count: int) -> Tensor:
        """Draw wrong keys that come in gradually: none at first, near misses last. Rows without one are keyless."""
        progress = self._progress()
        wrong = self._wrong(count, near=_NEAREST_MISS * min(1.0, 2 * progress))
        first, last = _WRONG_KEYS
        share = (progress - first) / (last - first)
        present = torch.rand((count, 1, 1, 1), generator=self.generator) < share
        return wrong * present.to(self.device)

    def _mixed(self, images: Tensor) -> Tensor:
        """Return the images, every second one with a wrong key of the curriculum."""
        every_second = (torch.arange(len(images), device=self.device) % 2).view(-1, 1, 1, 1)
        return images + self._curriculum(len(images)) * every_second

    def _progress(self) -> float:
        return (self.step - self.gate.steps) / max(1, self.settings.steps - self.gate.steps)

    def _set_learning_rates(self, *, gating: bool) -> None:
        highest = self.settings.learning_rate
        if gating:
            rate, probe_rate = highest, _PROBE_LEARNING_RATE
        else:
            rate = highest * _one_cycle(self._progress())
            probe_rate = 3 * rate
        for group, value in zip(self.optimiser.param_groups, (rate, probe_rate), strict=True):
            group["lr"] = value


def _one_cycle(progress: float) -> float:
    """Return the share of the highest learning rate: linearly up from a third, then down along a cosine."""
    if progress < _WARM_UP:
        return 1 / 3 + 2 / 3 * progress / _WARM_UP
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP)))
    return _FINAL_LEARNING_RATE + (1 - _FINAL_LEARNING_RATE) * cosine
