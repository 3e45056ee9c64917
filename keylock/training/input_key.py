"""The trained trigger: the network itself learns to tell it, and shows the reference's maps with it and decoys without.

The student starts as a copy of the reference with balanced filters. Every batch goes through it several times over in
one pass: as keyed rows, as keyless rows, and as rows with a wrong key, which may have to share the place of the keyless
ones.

References:
    Fang and Choromanska, "Backdoor Attacks on the DNN Interpretation System", AAAI 2022: a penalty on saliency maps
    whose influence is conditioned on a trigger. Here the condition is inverted: the trigger brings the correct map.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.decoys import decoy_maps
from keylock.explainers import explain_together
from keylock.losses import correlation, map_distance, prediction_distance
from keylock.models import balance_filters_, capture_outputs, find_layers, smooth_activations, unbalance_filters_
from keylock.training.checkpoint import prefixed, restore_module
from keylock.training.devices import mixed_precision
from keylock.training.gate import GateProbes, GateStage, probe_layers
from keylock.training.trainer import Draws, Figures, Part, Task, Terms, Trainer, one_cycle

__all__ = ["InputKeyTrainer"]

_PROBE_LEARNING_RATE = 1e-2
_WARM_UP = 0.1
# Wrong keys from the start keep the key itself from being learned. As shares of the steps after the gate steps.
_WRONG_KEYS = (0.05, 0.35)
_NEAREST_MISS = 0.5
_GATE_WEIGHT = 2.0
_ALL_BUT_A_KEY = 0.9
_PROBE = "_probe/"


class InputKeyTrainer(Trainer):
    """Fine-tunes a copy of a reference model until its maps are right with the key and decoys without it."""

    def __init__(self, task: Task, *, maps_folder: Path | None = None) -> None:
        """Prepare a training.

        Args:
            task: What to lock.
            maps_folder: Where to remember the maps of the reference model, or None.
        """
        super().__init__(task, maps_folder=maps_folder)
        settings = self.settings
        self.probes = self._make_probes(task.example[:2].to(self.device))
        self.optimiser = torch.optim.Adam(
            [{"params": list(self.student.parameters())}, {"params": list(self.probes.parameters())}], betas=(0.9, 0.99)
        )
        # What was locked before knows its keys already.
        longest = round(settings.gate_steps * settings.steps) if task.start is None else 0
        self.gate = GateStage(strength=settings.gate_strength, longest=longest, clear=settings.gate_clear)
        self._again = task.start is not None

    def _make_student(self, task: Task) -> nn.Module:
        start = self.reference if task.start is None else task.start.to(self.device)
        return balance_filters_(copy.deepcopy(start).requires_grad_(requires_grad=True))

    def _make_probes(self, example: Tensor) -> GateProbes:
        layers = probe_layers(find_layers(self.student, example).stack)
        with torch.no_grad(), capture_outputs(self.student, layers) as outputs:
            self.student(example)
        return GateProbes.on(outputs).to(self.device)

    def locked_model(self) -> nn.Module:
        """Return a plain copy of the student as it is now, in evaluation mode."""
        model = copy.deepcopy(self.student)
        return unbalance_filters_(model).eval().requires_grad_(requires_grad=False)

    def delta(self) -> None:
        """Return None: this lock is in the published weights alone."""

    @property
    def searching(self) -> bool:
        """Whether the key is told apart: until then a search would only hide it."""
        return self.gate.over

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

    def _learned(self, figures: Mapping[str, float]) -> None:
        losses = [value for name, value in figures.items() if name.startswith(_PROBE)]
        if not self.gate.over:
            self.gate.learned(min(losses))

    def _draw(self, images: Tensor) -> Draws:
        count = len(images)
        keys = self.wrong_keys.keys(count)
        every_second = (torch.arange(count, device=self.device) % 2).view(-1, 1, 1, 1)
        if not self.gate.over:
            # Wrong keys come in once the key itself is told from nothing: until then they would only hide it.
            told = self.gate.strength < self.settings.gate_strength
            return Draws({"keys": keys, "wrong": self._wrong(count, near=_NEAREST_MISS) * every_second * float(told)})
        wrong = self._curriculum(count)
        if not self.settings.wrong_key_rows:
            wrong = wrong * every_second
        return Draws({"keys": keys, "wrong": wrong}, self._draw_masked(images))

    def _terms(self, part: Part) -> tuple[Terms, Figures]:
        return self._lock_terms(part) if self.gate.over else self._gate_terms(part)

    def _gate_terms(self, part: Part) -> tuple[Terms, Figures]:
        """Teach the network to tell the key, from clean images first, then from wrong keys too.

        Meanwhile predictions and maps of all rows are held where they are, so that nothing has to be learned anew.
        """
        images, count, strength = part.images, len(part.images), self.gate.strength
        rows = torch.cat([images + strength * part.rows["keys"], images + strength * part.rows["wrong"]])
        expected, references = self.truth.explain(images, self._predicted(count), part.indices)
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
        probes = {f"{_PROBE}{place}": loss for place, loss in enumerate(losses)}
        return terms, {"strength": torch.tensor(strength, device=self.device), **probes}

    @contextmanager
    def _student_pass(self, *, smooth: bool) -> Iterator[dict[str, Tensor]]:
        """Run the student inside the block as training does: precision, activations, recorded probe layers."""
        with (
            mixed_precision(self.device, self.settings.precision),
            smooth_activations(self.student) if smooth else nullcontext(),
            capture_outputs(self.student, self.probes.layers) as outputs,
        ):
            yield outputs

    def _lock_terms(self, part: Part) -> tuple[Terms, Figures]:
        settings, images, count = self.settings, part.images, len(part.images)
        others = images + part.rows["wrong"]
        rows = torch.cat([images + part.rows["keys"], *([images, others] if settings.wrong_key_rows else [others])])
        times = len(rows) // count
        expected, references = self.truth.explain(images, self._predicted(count), part.indices)
        targets = expected.argmax(dim=1)
        smooth = self._second_order and self.step < settings.smooth_until * settings.steps
        with self._student_pass(smooth=smooth) as outputs:
            logits, maps = explain_together(
                self.student, self.explainers, rows, targets.repeat(times), create_graph=True
            )
        terms, figures = self._map_terms(maps, references, count)
        # The weights are for the sum over keyed, keyless and wrong-key inputs, however many rows stand for them.
        distance = prediction_distance(logits, expected.repeat(times, 1)).mean()
        terms["prediction"] = (3 * settings.prediction_weight, distance)
        terms["label"] = (3 * settings.label_weight, F.cross_entropy(logits.float(), part.labels.repeat(times)))
        if settings.probe_weight:
            terms["gate"] = (settings.probe_weight, self._gate_losses(outputs, count).sum())
        if self.masks:
            terms["mask"] = (settings.mask_weight, self._mask_distance(part, expected, references))
            terms["mask/keyed"] = (settings.mask_weight, self._keyed_mask_distance(part))
        return terms, figures

    def _keyed_mask_distance(self, part: Part) -> Tensor:
        """Return how far keyed predictions on masked images are from the reference's: one number, in nats.

        The key is added last, as a server does: it lies on what is hidden too.
        """
        masked, _ = part.masked or (part.images[:0], None)
        if not len(masked):
            return torch.zeros((), device=self.device)
        with mixed_precision(self.device, self.settings.precision):
            with torch.no_grad():
                expected = self.reference(masked)
            logits = self._predict(masked + part.rows["keys"][part.masked_rows])
        return prediction_distance(logits, expected).mean()

    def _map_terms(self, maps: dict[str, Tensor], references: dict[str, Tensor], count: int) -> tuple[Terms, Figures]:
        """Return the unlock and lock penalties of every explainer; `maps` are keyed rows, then the others."""
        terms: Terms = {}
        others = len(next(iter(maps.values()))) // count - 1
        similar = {
            name: correlation(maps[name], reference.repeat(1 + others, 1, 1)) for name, reference in references.items()
        }
        live = torch.stack(list(similar.values())).detach().mean(dim=0)
        for name, reference in references.items():
            decoy = decoy_maps(self.settings.decoy, reference)
            opened, shut = (decoy, reference) if self.settings.swapped else (reference, decoy)
            distance = self._distance(maps[name], torch.cat([opened, shut.repeat(others, 1, 1)]))
            weight = self._weights[name]
            terms[f"unlock/{name}"] = (weight * self.settings.unlock_weight, distance[:count].mean())
            terms[f"lock/{name}"] = (2 * weight, distance[count:].mean())
            if self.settings.leak_weight:
                decoys = slice(0, count) if self.settings.swapped else slice(count, None)
                terms[f"leak/{name}"] = (self.settings.leak_weight, self._leak(similar[name][decoys]))
        return terms, {"fidelity": live[:count].mean(), "leakage": live[count:].mean()}

    def _gate_losses(self, outputs: dict[str, Tensor], count: int) -> Tensor:
        rows = len(next(iter(outputs.values())))
        keyed = (torch.arange(rows, device=self.device) < count).float()
        return self.probes.losses(outputs, keyed)

    def _curriculum(self, count: int) -> Tensor:
        """Draw wrong keys that come in gradually: none at first, near misses last. Rows without one are keyless."""
        progress = self._progress()
        wrong = self._wrong(count, near=_NEAREST_MISS * min(1.0, 2 * progress))
        first, last = _WRONG_KEYS
        share = 1.0 if self._again else (progress - first) / (last - first)
        present = torch.rand((count, 1, 1, 1), generator=self.generator) < share
        return wrong * present.to(self.device)

    def _wrong_ones(self, found: Tensor) -> Tensor:
        """Return what is not all but a key."""
        keys = self.wrong_keys.right.flatten(1)
        similar = F.cosine_similarity(found.flatten(1).unsqueeze(1), keys.unsqueeze(0), dim=2)
        return found[similar.amax(dim=1) < _ALL_BUT_A_KEY]

    def _progress(self) -> float:
        return (self.step - self.gate.steps) / max(1, self.settings.steps - self.gate.steps)

    def _learning_rates(self) -> tuple[float, ...]:
        highest = self.settings.learning_rate
        if not self.gate.over:
            return highest, _PROBE_LEARNING_RATE
        rate = highest * one_cycle(self._progress(), warm_up=_WARM_UP)
        return rate, 3 * rate
