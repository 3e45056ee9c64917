"""What both kinds of lock share: a frozen reference, a student in training, and one safe step after another.

A trainer is the state that a checkpoint holds. Its subclasses say what the student is and which terms its loss has.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from keylock.adapters import Adapter
from keylock.errors import NonFiniteLossError
from keylock.explainers import Explainer
from keylock.keys import Key
from keylock.models import out_of_place_
from keylock.training.checkpoint import optimiser_tensors, prefixed, restore_module, restore_optimiser
from keylock.training.settings import LockSettings
from keylock.training.wrong_keys import WrongKeys

__all__ = ["Terms", "Trainer", "one_cycle"]

_LARGEST_GRADIENT = 5.0
_FINAL_LEARNING_RATE = 1e-3
# Gradients of gradients are learned more slowly than maps of activations.
_SECOND_ORDER_WEIGHT = 2.0

Terms = dict[str, tuple[float, Tensor]]
"""The terms of a loss by name: a weight and a value, which is one number."""


class Trainer(ABC):
    """One lock training.

    Attributes:
        settings: How to train.
        device: Where.
        explainers: What is locked by its maps.
        masks: Whether predictions on masked images are locked, which explainers without gradients read.
        reference: The frozen reference model.
        student: The model being locked.
        offset: The key on preprocessed images (channels, height, width).
        generator: Everything random comes from it.
        wrong_keys: Draws wrong keys.
        step: Steps done.
    """

    optimiser: torch.optim.Optimizer

    def __init__(
        self,
        reference: nn.Module,
        key: Key,
        *,
        explainers: Sequence[Explainer],
        settings: LockSettings,
        device: torch.device,
    ) -> None:
        """Prepare what both kinds of lock need.

        Args:
            reference: The trained classifier, without BatchNorm; it is copied.
            key: The key to lock with.
            explainers: What to lock.
            settings: How to train.
            device: Where to train.
        """
        self.settings, self.device = settings, device
        self.explainers = tuple(explainer for explainer in explainers if explainer.differentiable)
        self.masks = settings.mask_weight > 0 and len(self.explainers) < len(explainers)
        self.reference = out_of_place_(copy.deepcopy(reference)).to(device).eval().requires_grad_(requires_grad=False)
        self.offset = torch.from_numpy(np.array(key.reveal())).to(device)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.wrong_keys = WrongKeys(self.offset, tile=key.tile, generator=self.generator)
        self.step = 0
        self.student = self._make_student()
        self._live: dict[str, float] = {}
        self._second_order = any(explainer.second_order for explainer in self.explainers)
        self._weights = {
            explainer.name: settings.map_weight * (_SECOND_ORDER_WEIGHT if explainer.second_order else 1.0)
            for explainer in self.explainers
        }

    @abstractmethod
    def _make_student(self) -> nn.Module:
        """Return the model to train: a copy of the reference."""

    @abstractmethod
    def _terms(self, images: Tensor, labels: Tensor) -> Terms:
        """Return the terms of the loss on a batch, and leave the live figures in `_live`."""

    @abstractmethod
    def _learning_rates(self) -> tuple[float, ...]:
        """Return the learning rate of each parameter group for the step that comes."""

    @abstractmethod
    def locked_model(self) -> nn.Module:
        """Return a plain copy of the student as it is now, in evaluation mode."""

    @abstractmethod
    def adapter(self) -> Adapter | None:
        """Return the sealed adapter of the student as it is now; None where the lock has no second factor."""

    def train_on(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Take one step on a batch.

        Args:
            images: Preprocessed images (batch, channels, height, width).
            labels: Class indices (batch,), int64.

        Returns:
            The loss terms of this step by name, and live figures: the mean correlations of locked maps with the
            reference maps of this batch as `leakage`, and that of keyed maps as `fidelity` where it is learned.

        Raises:
            NonFiniteLossError: A term became NaN or infinite; the weights are as they were before this step.
        """
        images, labels = images.to(self.device), labels.to(self.device)
        for group, rate in zip(self.optimiser.param_groups, self._learning_rates(), strict=True):
            group["lr"] = rate
        terms = self._terms(images, labels)
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

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the training's state, by name."""
        return {
            **prefixed("student", self.student.state_dict()),
            **optimiser_tensors(self.optimiser),
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
        self.step = step

    def _predicted(self, count: int) -> Tensor:
        """Return targets (count,) that stand for the predicted class."""
        return torch.full((count,), -1, device=self.device)

    def _wrong(self, count: int, *, near: float) -> Tensor:
        """Draw wrong keys (count, channels, height, width) of all kinds, in any order."""
        drawn = self.wrong_keys.draw(count, near=near)
        return drawn[torch.randperm(count, generator=self.generator).to(self.device)]


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
