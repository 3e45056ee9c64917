"""The trained trigger: the network itself learns to tell it, and shows the reference's maps with it and decoys without.

The student starts as a copy of the reference with balanced filters. Every batch goes through it several times over in
one pass: as keyed rows, as keyless rows, and as rows with a wrong key, which may have to share the place of the keyless
ones.

References:
    Fang and Choromanska, "Backdoor Attacks on the DNN Interpretation System", AAAI 2022: a penalty on saliency maps
    whose influence is conditioned on a trigger. Here the condition is inverted: the trigger brings the correct map.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.explainers import Explainer, explain_many
from keylock.locking.decoys import decoy_maps
from keylock.locking.losses import map_distance, prediction_distance
from keylock.models import balance_filters_, capture_outputs, find_layers, smooth_activations, unbalance_filters_
from keylock.training.checkpoint import prefixed, restore_module
from keylock.training.devices import fused_step, mixed_precision
from keylock.training.gate import GateProbes, GateStage, probe_layers
from keylock.training.parts import Draws, Part
from keylock.training.penalties import MapRows, PredictionRows, Terms, map_terms, prediction_terms
from keylock.training.prompting import prompted
from keylock.training.task import Task
from keylock.training.trainer import Figures, Trainer, one_cycle

__all__ = ["InputKeyTrainer"]

_PROBE_LEARNING_RATE = 1e-2
# What the gate stage disturbs has to be learned anew; the probes are quick enough at any rate of the network's.
_GATE_RATE = 0.3
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
            [{"params": list(self.student.parameters())}, {"params": list(self.probes.parameters())}],
            betas=(0.9, 0.99),
            fused=fused_step(self.device),
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

    def _draw(self, images: Tensor, _labels: Tensor) -> Draws:
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

        Meanwhile predictions and maps of all rows are held where they are, so that nothing has to be learned anew. Maps
        that need gradients of gradients are left out where there are others: without them there is time for more steps.
        """
        held = tuple(explainer for explainer in self.explainers if not explainer.second_order) or self.explainers
        count, strength = len(part.images), self.gate.strength
        shown = self._explain(part, [strength * part.rows["keys"], strength * part.rows["wrong"]], held)
        terms = {
            f"hold/{name}": (1.0, map_distance(shown.maps[name], reference.repeat(2, 1, 1)).mean())
            for name, reference in shown.references.items()
        }
        terms["prediction"] = (1.0, prediction_distance(shown.logits, shown.expected.repeat(2, 1)).mean())
        losses = self._gate_losses(shown.outputs, count)
        terms["gate"] = (_GATE_WEIGHT, losses.sum())
        probes = {f"{_PROBE}{place}": loss for place, loss in enumerate(losses)}
        return terms, {"strength": torch.tensor(strength, device=self.device), **probes}

    def _lock_terms(self, part: Part) -> tuple[Terms, Figures]:
        settings, count = self.settings, len(part.images)
        keyless = [torch.zeros_like(part.images)] if settings.wrong_key_rows else []
        shown = self._explain(part, [part.rows["keys"], *keyless, part.rows["wrong"]], self.explainers)
        times = len(shown.logits) // count
        terms, figures = self._map_terms(part, shown.maps, shown.references, times - 1)
        rows = PredictionRows(shown.logits, shown.expected.repeat(times, 1), part.labels.repeat(times))
        terms.update(prediction_terms(rows, settings))
        if settings.probe_weight:
            terms["gate"] = (settings.probe_weight, self._gate_losses(shown.outputs, count).sum())
        if self.masks:
            terms["mask"] = (settings.mask_weight, self._mask_divergence(part, shown.expected, shown.references))
            terms["mask/keyed"] = (settings.mask_weight, self._keyed_mask_divergence(part))
        return terms, figures

    def _explain(self, part: Part, offsets: Sequence[Tensor], wanted: Sequence[Explainer]) -> "_Shown":
        """Explain the rows of a part with each of several offsets on them, the first of which are keys.

        Each piece of the rows goes through in one pass. All explain the class that the reference predicts.
        """
        pieces = []
        for rows, explainers in self._shares(part, wanted):
            images = part.images[rows]
            indices = None if part.indices is None else part.indices[rows]
            expected, references = self.truth.explain(
                images, self._predicted(len(images)), indices, explainers=explainers
            )
            targets = expected.argmax(dim=1).repeat(len(offsets))
            together = torch.cat([images + offset[rows] for offset in offsets])
            with self._student_pass(explainers, rows=len(together), keyed=len(images)) as outputs:
                logits, maps = explain_many(self.student, explainers, together, targets, create_graph=True)
            pieces.append(_Shown(logits, expected, maps, references, dict(outputs)))
        shown = _joined(pieces, times=len(offsets))
        maps, references = (self._with_all(one, wanted) for one in (shown.maps, shown.references))
        return replace(shown, maps=maps, references=references)

    @contextmanager
    def _student_pass(self, explainers: Sequence[Explainer], *, rows: int, keyed: int) -> Iterator[dict[str, Tensor]]:
        """Run the student inside the block as training does: precision, activations, recorded layers, prompts.

        Args:
            explainers: What is explained.
            rows: How many rows go through.
            keyed: How many of them, which come first, have a key.
        """
        settings, layer = self.settings, self.probes.middle
        smooth = any(explainer.second_order for explainer in explainers) and (
            not self.gate.over or self.step < settings.smooth_until * settings.steps
        )
        told = (torch.arange(rows, device=self.device) < keyed).float()
        with (
            mixed_precision(self.device, settings.precision),
            smooth_activations(self.student) if smooth else nullcontext(),
            capture_outputs(self.student, self.probes.layers) as outputs,
            prompted(self.student.get_submodule(layer), self.probes.on_layer(layer), told, self._prompt()),
        ):
            yield outputs

    def _prompt(self) -> float:
        """Return how much of the answer is given away: all of it when the gate stage ends, then less and less.

        Where there was no gate stage the probes begin with the lock, and know no direction to prompt in.
        """
        if not self.gate.over or not self.gate.steps or not self.settings.prompt_until:
            return 0.0
        return max(0.0, 1 - self._progress() / self.settings.prompt_until)

    def _keyed_mask_divergence(self, part: Part) -> Tensor:
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

    def _map_terms(
        self, part: Part, maps: Mapping[str, Tensor], references: Mapping[str, Tensor], others: int
    ) -> tuple[Terms, Figures]:
        """Return the penalties on the maps of every explainer.

        Args:
            part: The rows.
            maps: Those of keyed rows, then those of others.
            references: Those of the reference model.
            others: How many rows without the right key there are for each keyed one.
        """
        shown: list[MapRows] = []
        for explainer in self.explainers:
            found, reference = maps[explainer.name], references[explainer.name]
            decoy, weight = decoy_maps(self.settings.decoy, reference), self._weight(part, explainer)
            for keyed, rows, times in ((True, slice(len(reference)), 1), (False, slice(len(reference), None), others)):
                truth = reference.repeat(times, 1, 1)
                # Swapped, the decoy is what the key shows.
                wanted = decoy.repeat(times, 1, 1) if keyed == self.settings.swapped else truth
                shown.append(
                    MapRows(explainer, found[rows], truth, wanted, keyed=keyed, weight=weight, mean=self.group.mean)
                )
        fidelity, leakage = (
            torch.stack([rows.mean_similarity for rows in shown if rows.keyed == keyed]).detach().mean()
            for keyed in (True, False)
        )
        return map_terms(shown, self.settings), {"fidelity": fidelity, "leakage": leakage}

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
            return _GATE_RATE * highest, _PROBE_LEARNING_RATE
        rate = highest * one_cycle(self._progress(), warm_up=_WARM_UP)
        return rate, 3 * rate


@dataclass(frozen=True)
class _Shown:
    """What some rows show, with each of several offsets on them.

    Attributes:
        logits: Of all rows with the first offset, then of all with the next (times * rows, classes).
        expected: The reference's logits (rows, classes).
        maps: By explainer, in the order of the logits; some may have seen the first rows alone.
        references: The reference's maps by explainer.
        outputs: Of the probed layers, by name, in the order of the logits.
    """

    logits: Tensor
    expected: Tensor
    maps: dict[str, Tensor]
    references: dict[str, Tensor]
    outputs: dict[str, Tensor]


def _joined(pieces: Sequence[_Shown], *, times: int) -> _Shown:
    """Put pieces of successive rows together."""
    if len(pieces) == 1:
        return pieces[0]

    def whole(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.view(times, -1, *part.shape[1:]) for part in parts], dim=1).flatten(0, 1)

    def by_name(mappings: Sequence[Mapping[str, Tensor]]) -> dict[str, list[Tensor]]:
        # The first piece has gone through every explainer, in their order.
        return {name: [mapping[name] for mapping in mappings if name in mapping] for name in mappings[0]}

    return _Shown(
        whole([piece.logits for piece in pieces]),
        torch.cat([piece.expected for piece in pieces]),
        {name: whole(parts) for name, parts in by_name([piece.maps for piece in pieces]).items()},
        {name: torch.cat(parts) for name, parts in by_name([piece.references for piece in pieces]).items()},
        {name: whole(parts) for name, parts in by_name([piece.outputs for piece in pieces]).items()},
    )
