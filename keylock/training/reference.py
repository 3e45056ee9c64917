"""Training a reference model, where the user brings none.

Training images carry random perturbations of the key's kind, of any height up to several times the key's. The
classifier learns to look past them, so that its maps change little when the key is added, and locking starts from
keyed maps that are nearly right.
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
from keylock.training.devices import denormals_flushed, mixed_precision, resolve_precision
from keylock.training.loop import memory_limits_named, run_steps
from keylock.training.progress import Progress
from keylock.training.wrong_keys import WrongKeys

__all__ = ["train_reference"]

_SCHEDULED = ("lr", "betas")


@denormals_flushed()
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
    perturbation: float = 4.0,
    precision: str = "auto",
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
        perturbation: Largest height of a perturbation, as a multiple of `magnitude`.
        precision: What to compute in, one of `PRECISIONS`.
        seed: Of the perturbations.
        checkpoint: File to keep the state in.
        resume: Go on from the checkpoint, where there is one.

    Returns:
        The same model, in evaluation mode, on the CPU.

    Raises:
        NonFiniteLossError: Training diverged; the checkpoint holds an earlier state.
        OutOfMemoryError: A step does not fit into memory.
        ResumeError: The checkpoint belongs to another run.
    """
    model.to(device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    perturbations = WrongKeys(magnitude.to(device).unsqueeze(0), tile=tile, generator=generator)
    heights = magnitude.flatten(1).amax(dim=1).tolist()
    # The learning rate may change in a resumed run, for a run that diverged.
    precision = resolve_precision(precision, device)
    identity = {
        "steps": steps,
        "perturbation": perturbation,
        "seed": seed,
        "tile": tile,
        "heights": heights,
        "precision": precision,
    }
    step, state_before = 0, _volatile(model, batches, generator)

    def keep() -> None:
        # A step that was begun and not finished is taken again: same batch, same random numbers, same statistics.
        if checkpoint is not None:
            buffers, drawn, place = state_before
            tensors = prefixed("model", model.state_dict() | buffers) | optimiser_tensors(optimiser)
            rates = [{name: group[name] for name in _SCHEDULED} for group in optimiser.param_groups]
            state = {"step": step, "loader": place, "identity": identity, "schedule": schedule.state_dict()}
            write_checkpoint(checkpoint, {**tensors, "generator": drawn}, {**state, "rates": rates})

    if resume and checkpoint is not None and checkpoint.is_file():
        tensors, state = read_checkpoint(checkpoint)
        if state["identity"] != identity:
            raise ResumeError(f"the checkpoint {checkpoint} was made with other settings: use the same, or start anew")
        restore_module(model, "model", tensors)
        restore_optimiser(optimiser, tensors)
        schedule.load_state_dict(state["schedule"])
        for group, rates in zip(optimiser.param_groups, state["rates"], strict=True):
            group.update(rates)
        generator.set_state(tensors["generator"])
        batches.restore(state["loader"])
        step, state_before = state["step"], _volatile(model, batches, generator)
    stream = _stream(batches)

    def take_step() -> dict[str, float]:
        nonlocal step, state_before
        # Dropout draws from torch's global generator; inside the block it is ours, and the same in every run.
        torch.manual_seed(_mixed(seed, step))
        images, labels = next(stream)
        scales = perturbation * torch.rand((len(images), 1, 1, 1), generator=generator)
        perturbed = images.to(device) + perturbations.draw_unrelated(len(images)) * scales.to(device)
        with memory_limits_named(len(images)):
            with mixed_precision(device, precision):
                logits = model(perturbed)
            loss = F.cross_entropy(logits.float(), labels.to(device))
            if not torch.isfinite(loss):
                raise NonFiniteLossError("cross-entropy", step)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        schedule.step()
        step, state_before = step + 1, _volatile(model, batches, generator)
        return {"cross-entropy": float(loss.detach())}

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        run_steps("reference", steps, step, take_step=take_step, keep=keep, progress=progress)
    return model.eval().cpu()


def _volatile(model: nn.Module, batches: Batches, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor, Any]:
    """Copy what a step changes before its end: the model's buffers, the generator, the place in the data."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if name in model.state_dict()}
    return buffers, generator.get_state(), batches.state


def _mixed(seed: int, step: int) -> int:
    """Return a seed for one step that no other step of this or of a neighbouring seed has."""
    return (seed << 32) + step & 0x7FFF_FFFF_FFFF_FFFF


def _stream(batches: Batches) -> Iterator[Any]:
    return ((batch.images, batch.labels) for batch in batches.stream())
