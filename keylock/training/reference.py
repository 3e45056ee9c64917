"""Training a reference model, where the user brings none.

Training images carry random perturbations of the key's kind, of any height up to several times the key's. The
classifier learns to look past them, so that its maps change little when the key is added, and locking starts from
keyed maps that are nearly right.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.data.batches import Batches
from keylock.errors import NonFiniteLossError, ResumeError
from keylock.training.checkpoint import (
    optimiser_tensors,
    prefixed,
    read_checkpoint,
    restore_module,
    restore_optimiser,
    write_checkpoint,
)
from keylock.training.devices import denormals_flushed, fused_step, mixed_precision, resolve_precision
from keylock.training.loop import memory_limits_named, run_steps
from keylock.training.progress import Progress
from keylock.training.softplus import quick_softplus
from keylock.training.wrong_keys import WrongKeys

__all__ = ["ReferenceSettings", "train_reference"]

_SCHEDULED = ("lr", "betas")


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """How a reference model is trained.

    Attributes:
        steps: Optimiser steps.
        magnitude: Height of the perturbations on preprocessed images (channels, height, width): the key's, without its
            signs.
        tile: Side of the perturbations' repeated block, in pixels.
        learning_rate: Highest learning rate.
        perturbation: Largest height of a perturbation, as a multiple of `magnitude`.
        precision: What to compute in, one of `PRECISIONS`.
        seed: Of the perturbations.
    """

    steps: int
    magnitude: Tensor
    tile: int
    learning_rate: float
    perturbation: float = 4.0
    precision: str = "auto"
    seed: int = 0


@denormals_flushed()
@quick_softplus()
def train_reference(
    model: nn.Module,
    batches: Batches,
    settings: ReferenceSettings,
    *,
    device: torch.device,
    progress: Progress,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> nn.Module:
    """Train a classifier, in place, with Adam and one learning-rate cycle.

    Args:
        model: The untrained classifier.
        batches: Training batches, gone through as often as it takes.
        settings: How to train.
        device: Where to train.
        progress: Hears about every step.
        checkpoint: File to keep the state in.
        resume: Go on from the checkpoint, where there is one.

    Returns:
        The same model, in evaluation mode, on the CPU.

    Raises:
        NonFiniteLossError: Training diverged; the checkpoint holds an earlier state.
        OutOfMemoryError: A step does not fit into memory.
        ResumeError: The checkpoint belongs to another run.
    """
    run = _Run(model.to(device).train(), batches, settings, device, checkpoint)
    if resume:
        run.restore()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        run_steps("reference", settings.steps, run.step, take_step=run.take_step, keep=run.keep, progress=progress)
    return model.eval().cpu()


class _Run:
    """The state of a training, as its checkpoint holds it."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        settings: ReferenceSettings,
        device: torch.device,
        checkpoint: Path | None,
    ) -> None:
        self._model, self._batches, self._settings = model, batches, settings
        self._device, self._checkpoint = device, checkpoint
        self._precision = resolve_precision(settings.precision, device)
        self._optimiser = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=fused_step(device))
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, settings.learning_rate, total_steps=settings.steps
        )
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._perturbations = WrongKeys(
            settings.magnitude.to(device).unsqueeze(0), tile=settings.tile, generator=self._generator
        )
        self._stream = batches.stream()
        self.step, self._before = 0, self._volatile()

    def take_step(self) -> dict[str, float]:
        """Take one step, and return its loss."""
        settings = self._settings
        # Dropout draws from torch's global generator; inside a run it is ours, and the same in every run.
        torch.manual_seed(_mixed(settings.seed, self.step))
        batch = next(self._stream)
        count = len(batch.images)
        scales = settings.perturbation * torch.rand((count, 1, 1, 1), generator=self._generator)
        drawn = self._perturbations.draw_unrelated(count) * scales.to(self._device)
        with memory_limits_named(count):
            with mixed_precision(self._device, self._precision):
                logits = self._model(batch.images.to(self._device) + drawn)
            loss = F.cross_entropy(logits.float(), batch.labels.to(self._device))
            if not torch.isfinite(loss):
                raise NonFiniteLossError("cross-entropy", self.step)
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
        self._schedule.step()
        self.step, self._before = self.step + 1, self._volatile()
        return {"cross-entropy": float(loss.detach())}

    def keep(self) -> None:
        """Write the checkpoint.

        A step that was begun and not finished is taken again: same batch, same random numbers, same statistics.
        """
        if self._checkpoint is None:
            return
        buffers, drawn, place = self._before
        tensors = prefixed("model", self._model.state_dict() | buffers) | optimiser_tensors(self._optimiser)
        state = {
            "step": self.step,
            "loader": place,
            "identity": self._identity(),
            "schedule": self._schedule.state_dict(),
            "rates": [{name: group[name] for name in _SCHEDULED} for group in self._optimiser.param_groups],
        }
        write_checkpoint(self._checkpoint, {**tensors, "generator": drawn}, state)

    def restore(self) -> None:
        """Go back to the state of the checkpoint, where there is one.

        Raises:
            ResumeError: It belongs to another run.
        """
        if self._checkpoint is None or not self._checkpoint.is_file():
            return
        tensors, state = read_checkpoint(self._checkpoint)
        if state["identity"] != self._identity():
            raise ResumeError(
                f"the checkpoint {self._checkpoint} was made with other settings: use the same, or start anew"
            )
        restore_module(self._model, "model", tensors)
        restore_optimiser(self._optimiser, tensors)
        self._schedule.load_state_dict(state["schedule"])
        for group, rates in zip(self._optimiser.param_groups, state["rates"], strict=True):
            group.update(rates)
        self._generator.set_state(tensors["generator"])
        self._batches.restore(state["loader"])
        self._stream = self._batches.stream()
        self.step, self._before = state["step"], self._volatile()

    def _identity(self) -> dict[str, Any]:
        """Return what a resumed run must have the same; the learning rate may change, for a run that diverged."""
        settings = self._settings
        return {
            "steps": settings.steps,
            "perturbation": settings.perturbation,
            "seed": settings.seed,
            "tile": settings.tile,
            "heights": settings.magnitude.flatten(1).amax(dim=1).tolist(),
            "precision": self._precision,
        }

    def _volatile(self) -> tuple[dict[str, Tensor], Tensor, Any]:
        """Copy what a step changes before its end: the model's buffers, the generator, the place in the data."""
        kept = self._model.state_dict()
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers() if name in kept}
        return buffers, self._generator.get_state(), self._batches.state


def _mixed(seed: int, step: int) -> int:
    """Return a seed for one step that no other step of this or of a neighbouring seed has."""
    return (seed << 32) + step & 0x7FFF_FFFF_FFFF_FFFF
