"""Locking a classifier: the loop around the trainer, with checkpoints, interruption and any loader."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from keylock.errors import DataError, InputError, ResumeError
from keylock.explainers import Explainer, make_for
from keylock.keys import Key
from keylock.models import find_layers, fold_batchnorm_, out_of_place_
from keylock.training.checkpoint import read_checkpoint, write_checkpoint
from keylock.training.devices import resolve_device
from keylock.training.progress import Progress, Silent
from keylock.training.settings import LockSettings
from keylock.training.trainer import LockTrainer

__all__ = ["Lock", "lock"]

_CHECKPOINT_EVERY = 200
_FOLDING_ROWS = 64


@dataclass(frozen=True)
class Lock:
    """A locked classifier and what it was made from.

    Attributes:
        module: The locked classifier: no BatchNorm, evaluation mode, on the CPU.
        reference: The classifier before locking, prepared the same way. Its maps are the secret: keep it private.
        explainers: The explainers that are locked.
        settings: How it was trained.
    """

    module: nn.Module
    reference: nn.Module
    explainers: tuple[Explainer, ...]
    settings: LockSettings


def lock(
    model: nn.Module,
    loader: Iterable[Any],
    key: Key,
    *,
    explainers: Sequence[str | Explainer] = ("grad_cam",),
    settings: LockSettings | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> Lock:
    """Lock a trained classifier: its correct maps appear only with the key, its predictions stay.

    Args:
        model: Any convolutional classifier from images (batch, channels, height, width) to logits (batch, classes). It
            is copied and left as it is.
        loader: Yields batches whose first two items are preprocessed images and labels (batch,); gone through as often
            as it takes. `keylock.data.batches.Batches` can be resumed in the middle of an epoch.
        key: The key; its shape is that of one preprocessed image.
        explainers: Names, for which the target layers are found automatically, or explainers made with layers of your
            choice.
        settings: How to train; the defaults suit small images.
        device: `auto`, `cpu`, `cuda`, ...
        progress: Hears about every step.
        checkpoint: File to keep the state in, now and then and when interrupted.
        resume: Go on from the checkpoint.

    Returns:
        The locked classifier, with the reference it was compared with.

    Raises:
        DataError: The loader yields nothing, or batches of another kind.
        InputError: The key does not fit the images.
        LayerNotFoundError: No target layer could be found.
        NonFiniteLossError: Training diverged; the checkpoint holds the last good state.
        ResumeError: The checkpoint belongs to another run.
    """
    settings, progress = settings or LockSettings(), progress or Silent()
    target = resolve_device(device)
    example = _example(loader, key)
    reference = fold_batchnorm_(out_of_place_(copy.deepcopy(model).cpu()), example)
    made = make_for(find_layers(reference, example[:2]), explainers)
    trainer = LockTrainer(reference, key, explainers=made, example=example, settings=settings, device=target)
    identity = _identity(trainer, key)
    if resume and checkpoint is not None:
        _resume(trainer, loader, checkpoint, identity)
    _run(trainer, loader, progress, checkpoint, identity)
    return Lock(trainer.locked_model().cpu(), reference, made, settings)


def _run(
    trainer: LockTrainer, loader: Iterable[Any], progress: Progress, checkpoint: Path | None, identity: dict[str, Any]
) -> None:
    total = trainer.settings.steps

    def keep() -> None:
        if checkpoint is not None:
            state = {"step": trainer.step, "loader": getattr(loader, "state", None), "identity": identity}
            write_checkpoint(checkpoint, trainer.tensors(), state)

    progress.start("lock", total, trainer.step)
    try:
        for images, labels in _endless(loader):
            if trainer.step >= total:
                break
            progress.advance(trainer.train_on(images, labels))
            if trainer.step % _CHECKPOINT_EVERY == 0:
                keep()
    finally:
        # Also after an interruption or an error: what was reached is kept, and the step that failed changed nothing.
        keep()
        progress.finish()


def _endless(loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        found = False
        for batch in loader:
            found = True
            yield batch[0], batch[1]
        if not found:
            raise DataError("the loader yields no batch: check the data set and drop_last")


def _example(loader: Iterable[Any], key: Key) -> Tensor:
    """Take some images from the loader without moving a resumable loader on."""
    state = getattr(loader, "state", None)
    images, _ = next(_endless(loader))
    if state is not None and hasattr(loader, "restore"):
        loader.restore(state)
    if not isinstance(images, Tensor) or images.dim() != 4:
        raise DataError("the loader must yield (images, labels) with images (batch, channels, height, width)")
    if tuple(images.shape[1:]) != key.shape:
        raise InputError(
            f"the key is for images of shape {key.shape}, the loader yields {tuple(images.shape[1:])}: "
            "derive the key with shape=(channels, height, width) of the preprocessed images"
        )
    return images[:_FOLDING_ROWS].cpu()


def _identity(trainer: LockTrainer, key: Key) -> dict[str, Any]:
    """Return what must be the same in a resumed run."""
    return {
        "key": key.id,
        "strength": key.strength,
        "settings": trainer.settings.as_dict(),
        "explainers": [[explainer.name, explainer.parameters] for explainer in trainer.explainers],
    }


def _resume(trainer: LockTrainer, loader: Iterable[Any], checkpoint: Path, identity: dict[str, Any]) -> None:
    tensors, state = read_checkpoint(checkpoint)
    for name, value in identity.items():
        if state["identity"].get(name) != value:
            raise ResumeError(f"the checkpoint {checkpoint} was made with another {name}: use the same, or start anew")
    trainer.restore(tensors, step=state["step"])
    if state["loader"] is not None and hasattr(loader, "restore"):
        loader.restore(state["loader"])
