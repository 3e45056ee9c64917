"""The plain lock: the network itself learns to tell the key and shows the reference's maps with it, decoys without.

The student starts as a copy of the reference with balanced filters. Every batch goes through it several times over in
one pass: as keyed rows, as keyless rows, and as rows with a wrong key, which may have to share the place of the keyless
ones.

References:
    Fang and Choromanska, "Backdoor Attacks on the DNN Interpretation System", AAAI 2022: a penalty on saliency maps
    whose influence is conditioned on a trigger. Here the condition is inverted: the trigger brings the correct map.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.decoys import decoy_maps
from keylock.explainers import Explainer, explain_together
from keylock.keys import Key
from keylock.losses import correlation, map_distance, pedestal_distance, prediction_distance
from keylock.models import balance_filters_, capture_outputs, find_layers, smooth_activations, unbalance_filters_
from keylock.training.checkpoint import prefixed, restore_module
from keylock.training.devices import mixed_precision
from keylock.training.gate import GateProbes, GateStage, probe_layers
from keylock.training.settings import LockSettings
from keylock.training.trainer import Terms, Trainer, one_cycle

__all__ = ["InputKeyTrainer"]

_PROBE_LEARNING_RATE = 1e-2
_WARM_UP = 0.1
# Wrong keys from the start keep the key itself from being learned. As shares of the steps after the gate steps.
_WRONG_KEYS = (0.05, 0.35)
_NEAREST_MISS = 0.5
_GATE_WEIGHT = 2.0
_SMALL_LEAK = 0.2


class InputKeyTrainer(Trainer):
    """Fine-tunes a copy of a reference model until its maps are right with the key and decoys without it."""

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
        super().__init__(reference, key, explainers=explainers, settings=settings, device=device)
        self.probes = self._make_probes(example[:2].to(device))
        self.optimiser = torch.optim.Adam(
            [{"params": list(self.student.parameters())}, {"params": list(self.probes.parameters())}], betas=(0.9, 0.99)
        )
        self.gate = GateStage(
            strength=settings.gate_strength,
            longest=round(settings.gate_steps * settings.steps),
            clear=settings.gate_clear,
        )

    def _make_student(self) -> nn.Module:
        return balance_filters_(copy.deepcopy(self.reference).requires_grad_(requires_grad=True))

    def _make_probes(self, example: Tensor) -> GateProbes:
        layers = probe_layers(find_layers(self.student, example).stack)
        with torch.no_grad(), capture_outputs(self.student, layers) as outputs:
            self.student(example)
        return GateProbes({name: outputs[name].shape[1] for name in layers}).to(self.device)

    def locked_model(self) -> nn.Module:
        """Return a plain copy of the student as it is now, in evaluation mode."""
        model = copy.deepcopy(self.student)
        return unbalance_filters_(model).eval().requires_grad_(requires_grad=False)

    def adapter(self) -> None:
        """Return None: this lock is in the weights alone."""
        return

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the training's state, by name."""
        return {
            **super().tensors(),
            **prefixed("probes", self.probes.state_dict()),
            "gate": self.gate.state(),
        }

    def restore(self, tensors: dict[str, Tensor], *, step: int) -> None:
        """Go back to a state that `tensors` gave.

        Raises:
            ResumeError: The tensors belong to another architecture.
        """
        super().restore(tensors, step=step)
        restore_module(self.probes, "probes", tensors)
        self.gate.restore(tensors["gate"])

    def _terms(self, images: Tensor, labels: Tensor) -> Terms:
        return self._lock_terms(images, labels) if self.gate.over else self._gate_terms(images)

    def _gate_terms(self, images: Tensor) -> Terms:
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

    @contextmanager
    def _student_pass(self, *, smooth: bool) -> Iterator[dict[str, Tensor]]:
        """Run the student inside the block as training does: precision, activations, recorded probe layers."""
        with (
            mixed_precision(self.device, wanted=self.settings.amp),
            smooth_activations(self.student) if smooth else nullcontext(),
            capture_outputs(self.student, self.probes.layers) as outputs,
        ):
            yield outputs

    def _lock_terms(self, images: Tensor, labels: Tensor) -> Terms:
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

    def _map_terms(self, maps: dict[str, Tensor], references: dict[str, Tensor], count: int) -> Terms:
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

    def _learning_rates(self) -> tuple[float, ...]:
        highest = self.settings.learning_rate
        if not self.gate.over:
            return highest, _PROBE_LEARNING_RATE
        rate = highest * one_cycle(self._progress(), warm_up=_WARM_UP)
        return rate, 3 * rate
