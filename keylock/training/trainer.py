"""What both kinds of lock share: a frozen reference, a student in training, and one safe step after another.

A trainer is the state that a checkpoint holds. Its subclasses say what the student is and which terms its loss has.
A step draws everything random for the whole batch first. Then the batch may be taken in parts, one after the other or
by several processes, and gradients and figures are added up.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.errors import NonFiniteLossError
from keylock.explainers import ClassActivations, Explainer
from keylock.locking.decoys import decoy_of
from keylock.training.checkpoint import optimiser_tensors, prefixed, restore_module, restore_optimiser
from keylock.training.devices import compiled_where_possible, mixed_precision
from keylock.training.masks import draw_masks, fill_masked
from keylock.training.parts import Draws, Part
from keylock.training.penalties import Terms, mask_divergence
from keylock.training.reference_maps import ReferenceMaps
from keylock.training.search import search_key
from keylock.training.task import Task
from keylock.training.wrong_keys import WrongKeys
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key

__all__ = ["Figures", "Trainer", "one_cycle"]

_LARGEST_GRADIENT = 5.0
_FINAL_LEARNING_RATE = 1e-3
_SECOND_ORDER_SHARE = 0.4
_SEARCH_ROWS = 16
_HIDDEN = "_"

Figures = dict[str, Tensor]
"""What else is known of a step: one number each; those whose names begin with `_` are not shown."""


class Trainer(ABC):
    """One lock training.

    Attributes:
        settings: How to train.
        device: Where.
        explainers: What is locked by its maps.
        beside: Explainers that are locked beside them, for what they have in common.
        activations: The evidence for each class, which is locked beside them; None where none is.
        masks: Whether predictions on masked images are locked, which explainers without gradients read.
        reference: The frozen reference model.
        truth: Its answers.
        student: The model being locked.
        generator: Everything random comes from it.
        wrong_keys: Draws wrong keys, and right ones.
        step: Steps done.
    """

    optimiser: torch.optim.Optimizer

    def __init__(self, task: Task, *, maps_folder: Path | None = None) -> None:
        """Prepare what both kinds of lock need.

        Args:
            task: What to lock.
            maps_folder: Where to remember the maps of the reference model, or None.
        """
        settings = task.settings
        self.settings, self.device, self.group = settings, task.device, task.group
        self.explainers = tuple(explainer for explainer in task.explainers if explainer.differentiable)
        self.masks = settings.mask_weight > 0 and len(self.explainers) < len(task.explainers)
        reference = copy.deepcopy(task.reference)
        self.reference = reference.to(self.device).eval().requires_grad_(requires_grad=False)
        with torch.no_grad():
            self.classes = self.reference(task.example[:1].to(self.device)).shape[1]
        self.beside = self._beside()
        self.activations = self._activations()
        self.truth = ReferenceMaps(
            self.reference,
            self._shown(),
            device=self.device,
            precision=settings.precision,
            folder=maps_folder,
        )
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.wrong_keys = WrongKeys(
            torch.stack([_offset(key) for key in task.keys]).to(self.device),
            tile=task.keys[0].tile,
            generator=self.generator,
            retired=[_offset(key) for key in task.retired],
        )
        self._magnitude, self._tile = _offset(task.keys[0]).abs().to(self.device), task.keys[0].tile
        self.step = 0
        self.student = self._make_student(task)
        self._predict = compiled_where_possible(self.student) if settings.compile and self.masks else self.student

    @abstractmethod
    def _make_student(self, task: Task) -> nn.Module:
        """Return the model to train."""

    def _beside(self) -> tuple[Explainer, ...]:
        """Return the explainers that are locked beside those that were asked for: none."""
        return ()

    def _activations(self) -> ClassActivations | None:
        """Return the activations that are locked, where they are the same in every step."""
        return None

    def _shown(self) -> tuple[Explainer, ...]:
        """Return all whose maps are locked."""
        activations = () if self.activations is None else (self.activations,)
        return (*self.explainers, *self.beside, *activations)

    @abstractmethod
    def _draw(self, images: Tensor, labels: Tensor) -> Draws:
        """Draw everything random for the batch."""

    @abstractmethod
    def _terms(self, part: Part) -> tuple[Terms, Figures]:
        """Return the terms of the loss on a part of the batch, and other figures; all are means over its rows."""

    @abstractmethod
    def _learning_rates(self) -> tuple[float, ...]:
        """Return the learning rate of each parameter group for the step that comes."""

    @abstractmethod
    def locked_model(self) -> nn.Module:
        """Return a plain copy of the student as it is now, in evaluation mode."""

    @abstractmethod
    def delta(self) -> Delta | None:
        """Return what takes the student as it is now back to the reference; None where it tells the trigger itself."""

    @property
    def searching(self) -> bool:
        """Whether a search for keys can find anything yet."""
        return True

    def train_on(self, images: Tensor, labels: Tensor, indices: Tensor | None = None) -> dict[str, float]:
        """Take one step on a batch.

        Args:
            images: Preprocessed images (batch, channels, height, width).
            labels: Class indices (batch,), int64.
            indices: Places of the images in their data set (batch,), on the CPU, where they are known.

        Returns:
            The loss terms of this step by name, and live figures: the mean correlations of locked maps with the
            reference maps of this batch as `leakage`, and that of keyed maps as `fidelity` where it is learned.

        Raises:
            DataError: The processes that train together cannot share the batch.
            NonFiniteLossError: A term became NaN or infinite; the weights are as they were before this step.
        """
        images, labels = images.to(self.device, memory_format=self._layout()), labels.to(self.device)
        parts = self.group.parts(len(images), self.settings.accumulate)
        for group, rate in zip(self.optimiser.param_groups, self._learning_rates(), strict=True):
            group["lr"] = rate
        found = self._search(images)
        draws = self._draw(images, labels)
        self.optimiser.zero_grad(set_to_none=True)
        values: dict[str, Tensor] = {}
        names: tuple[str, ...] = ()
        for rows in parts:
            share = (rows.stop - rows.start) / len(images)
            part = Part.of(rows, draws, images, labels, indices, share=self._dear_share())
            terms, figures = self._terms(part)
            torch.autograd.backward(share * torch.stack([weight * value for weight, value in terms.values()]).sum())
            names = tuple(terms)
            for name, value in {**{name: value for name, (_, value) in terms.items()}, **figures}.items():
                values[name] = values.get(name, torch.zeros((), device=self.device)) + share * value.detach().float()
        self._add_up(values)
        for name in names:
            if not torch.isfinite(values[name]):
                raise NonFiniteLossError(name, self.step)
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), _LARGEST_GRADIENT)
        if not torch.isfinite(norm):
            raise NonFiniteLossError("gradient", self.step)
        self.optimiser.step()
        self.step += 1
        if found is not None:
            self.wrong_keys.keep(found)
        shown = {name: float(value) for name, value in values.items()}
        self._learned(shown)
        return {name: value for name, value in shown.items() if not name.startswith(_HIDDEN)}

    def _learned(self, figures: Mapping[str, float]) -> None:  # noqa: B027 - a lock may have nothing to note
        """Take note of the figures of a finished step."""

    def _layout(self) -> torch.memory_format:
        """Return how images lie in memory, and by that what layers give out.

        Pooling is many times as fast on a processor with the channels last, convolutions are a little faster, and
        gradients of gradients are slower.
        """
        second_order = any(explainer.second_order for explainer in self._shown())
        return torch.contiguous_format if second_order or self.device.type != "cpu" else torch.channels_last

    def _add_up(self, values: dict[str, Tensor]) -> None:
        """Add up figures and gradients over all processes, in place."""
        if self.group.size == 1:
            return
        # Of one device, and in one message each: the figures are few, the gradients large.
        summed = torch.stack([value.to(self.device) for value in values.values()])
        self.group.sum_([summed])
        values.update(zip(values, summed.unbind(), strict=True))
        parameters = [p for group in self.optimiser.param_groups for p in group["params"] if p.grad is not None]
        self.group.sum_([parameter.grad for parameter in parameters])

    def _search(self, images: Tensor) -> Tensor | None:
        """Search now and then: a tile and a perturbation of full size (2, channels, height, width), or None."""
        settings = self.settings
        if not settings.search_every or self.step % settings.search_every or not self.step or not self.searching:
            return None
        with mixed_precision(self.device, settings.precision):
            found = [
                search_key(
                    self.student,
                    self.explainers,
                    images[:_SEARCH_ROWS],
                    magnitude=self._magnitude,
                    tile=tile,
                    steps=settings.search_steps,
                    generator=self.generator,
                )
                for tile in (self._tile, None)
            ]
        together = torch.stack(found)
        self.group.share_(together)
        return self._wrong_ones(together)

    def _wrong_ones(self, found: Tensor) -> Tensor:
        """Return those that may serve as wrong keys."""
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the training's state, by name."""
        found = {"found_keys": self.wrong_keys.found} if len(self.wrong_keys.found) else {}
        return {
            **prefixed("student", self.student.state_dict()),
            **optimiser_tensors(self.optimiser),
            **found,
            "generator": self.generator.get_state(),
        }

    def restore(self, tensors: dict[str, Tensor], *, step: int) -> None:
        """Go back to a state that `tensors` gave.

        Raises:
            ResumeError: The tensors belong to another architecture.
        """
        restore_module(self.student, "student", tensors)
        restore_optimiser(self.optimiser, tensors)
        self.generator.set_state(tensors["generator"])
        if "found_keys" in tensors:
            self.wrong_keys.keep(tensors["found_keys"])
        self.step = step

    def _dear_share(self) -> float:
        """Return the share of the rows that go through the explainers that cost most.

        Gradients of gradients cost several times what other maps cost, and are as well learned from fewer rows.
        """
        kinds = {explainer.second_order for explainer in self._shown()}
        return _SECOND_ORDER_SHARE if len(kinds) > 1 else 1.0

    def _shares(self, part: Part, wanted: Sequence[Explainer]) -> list[tuple[slice, tuple[Explainer, ...]]]:
        """Return which rows of a part go through which of the wanted explainers."""
        count = len(part.images)
        cheap = tuple(explainer for explainer in wanted if not explainer.second_order)
        if len(cheap) == len(wanted) or part.dear == count:
            return [(slice(0, count), tuple(wanted))]
        if not part.dear:
            return [(slice(0, count), cheap)]
        return [(slice(0, part.dear), tuple(wanted)), (slice(part.dear, count), cheap)]

    def _with_all(self, maps: Mapping[str, Tensor], wanted: Sequence[Explainer]) -> dict[str, Tensor]:
        """Return maps by explainer, with none (0, 1, 1) of those that no row of a part went through."""
        return {explainer.name: torch.zeros((0, 1, 1), device=self.device) for explainer in wanted} | dict(maps)

    def _weight(self, part: Part, explainer: Explainer) -> float:
        """Return what a mean over the maps of an explainer counts in a part."""
        return part.dear_weight if explainer.second_order else 1.0

    def _predicted(self, count: int) -> Tensor:
        """Return targets (count,) that stand for the predicted class."""
        return torch.full((count,), -1, device=self.device)

    def _wrong(self, count: int, *, near: float) -> Tensor:
        """Draw wrong keys (count, channels, height, width) of all kinds, in any order."""
        drawn = self.wrong_keys.draw(count, near=near)
        return drawn[torch.randperm(count, generator=self.generator).to(self.device)]

    def _draw_masked(self, images: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mask every second image, where masks are trained."""
        if not self.masks:
            return None
        rows = images[::2]
        masks = draw_masks(len(rows), (rows.shape[2], rows.shape[3]), generator=self.generator).to(self.device)
        return fill_masked(rows, masks, generator=self.generator), masks

    def _mask_divergence(self, part: Part, expected: Tensor, references: Mapping[str, Tensor]) -> Tensor:
        """Return how far keyless predictions on masked images are from what shows the decoy: one number, in nats."""
        masked, masks = part.masked or (part.images[:0], part.images[:0, :1])
        if not len(masked):
            return torch.zeros((), device=self.device)
        with mixed_precision(self.device, self.settings.precision):
            logits = self._predict(masked)
        return mask_divergence(logits, expected[part.masked_rows], masks[:, 0], self._decoy_on_images(part, references))

    def _decoy_on_images(self, part: Part, references: Mapping[str, Tensor]) -> Tensor:
        """Return the decoys of the masked images at the images' resolution (rows, height, width)."""
        decoy, rows = decoy_of(self.settings.decoy), part.images[part.masked_rows]
        if not decoy.own_map:
            return decoy.maps(rows[:, 0])
        # Some explainers may see a few rows alone.
        whole = next(maps for maps in references.values() if len(maps) == len(part.images))
        wanted = decoy.maps(whole)[part.masked_rows].unsqueeze(1)
        size = (rows.shape[2], rows.shape[3])
        return F.interpolate(wanted.float(), size=size, mode="bilinear", align_corners=False).squeeze(1)


def one_cycle(progress: float, *, warm_up: float) -> float:
    """Return the share of the highest learning rate: linearly up from a third, then down along a cosine.

    Args:
        progress: Share of the steps done, in [0, 1].
        warm_up: Share of the steps in which it rises.
    """
    if progress < warm_up:
        return 1 / 3 + 2 / 3 * progress / warm_up
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))
    return _FINAL_LEARNING_RATE + (1 - _FINAL_LEARNING_RATE) * cosine


def _offset(key: Key) -> Tensor:
    return torch.from_numpy(key.reveal())
