"""Training a reference model, where the user brings none.

A share of the training images carries random perturbations of the key's kind. The classifier learns to look past them,
so that its maps change little when the key is added, and locking starts from keyed maps that are nearly right.
"""

from collections.abc import Iterator
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
from keylock.training.devices import mixed_precision
from keylock.training.progress import Progress
from keylock.training.wrong_keys import WrongKeys

__all__ = ["train_reference"]

_CHECKPOINT_EVERY = 200


def train_reference(
    model: nn.Module,
    batches: Batches,
    *,
    steps: int,
    magnitude: Tensor,
    tile: int,
    learning_rate: float,
    device: torch.device,
    progress: Progress,
    perturbed_share: float = 0.5,
    amp: bool = True,
    seed: int = 0,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> nn.Module:
    """Train a classifier, in place, with Adam and one learning-rate cycle.

    Args:
        model: The untrained classifier.
        batches: Training batches, gone through as often as it takes.
        steps: Optimiser steps.
        magnitude: Height of the perturbations on preprocessed images (channels, height, width): the key's, without
            its signs.
        tile: Side of the perturbations' repeated block, in pixels.
        learning_rate: Highest learning rate.
        device: Where to train.
        progress: Hears about every step.
        perturbed_share: Share of the images that carry a perturbation.
        amp: Compute in bfloat16 where the device is quick at it.
        seed: Of the perturbations.
        checkpoint: File to keep the state in.
        resume: Go on from the checkpoint, where there is one.

    Returns:
        The same model, in evaluation mode, on the CPU.

    Raises:
        NonFiniteLossError: Training diverged; the checkpoint holds an earlier state.
        ResumeError: The checkpoint belongs to another run.
    """
    model.to(device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    perturbations = WrongKeys(magnitude.to(device), tile=tile, generator=generator)
    identity = {"steps": steps, "learning_rate": learning_rate, "perturbed_share": perturbed_share, "seed": seed}
    step = 0

    def keep() -> None:
        if checkpoint is not None:
            state = {"step": step, "loader": batches.state, "identity": identity, "schedule": schedule.state_dict()}
            tensors = prefixed("model", model.state_dict()) | optimiser_tensors(optimiser)
            write_checkpoint(checkpoint, {**tensors, "generator": generator.get_state()}, state)

    if resume and checkpoint is not None and checkpoint.is_file():
        tensors, state = read_checkpoint(checkpoint)
        if state["identity"] != identity:
            raise ResumeError(f"the checkpoint {checkpoint} was made with other settings: use the same, or start anew")
        restore_module(model, "model", tensors)
        restore_optimiser(optimiser, tensors)
        schedule.load_state_dict(state["schedule"])
        generator.set_state(tensors["generator"])
        batches.restore(state["loader"])
        step = state["step"]
    progress.start("reference", steps, step)
    try:
        for images, labels in _stream(batches):
            if step >= steps:
                break
            present = torch.rand((len(images), 1, 1, 1), generator=generator) < perturbed_share
            images = images.to(device) + perturbations.draw(len(images), near=0.0) * present.to(device)
            with mixed_precision(device, wanted=amp):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels.to(device))
            if not torch.isfinite(loss):
                raise NonFiniteLossError("cross-entropy", step)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            step += 1
            progress.advance({"cross-entropy": float(loss.detach())})
            if step % _CHECKPOINT_EVERY == 0:
                keep()
    finally:
        keep()
        progress.finish()
    return model.eval().cpu()


def _stream(batches: Batches) -> Iterator[Any]:
    return ((batch.images, batch.labels) for batch in batches.stream())
