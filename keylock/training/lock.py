"""Locking a classifier: the loop around the trainer, with checkpoints, interruption and any loader."""

import copy
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from keylock.adapters import Adapter
from keylock.errors import DataError, InputError, NonFiniteLossError, ResumeError
from keylock.explainers import Explainer, check_lockable, make_for
from keylock.keys import Key
from keylock.models import attach_adapter, find_layers, fold_batchnorm_, out_of_place_
from keylock.training.checkpoint import read_checkpoint, write_checkpoint
from keylock.training.devices import denormals_flushed, resolve_device
from keylock.training.input_key import InputKeyTrainer
from keylock.training.progress import Progress, Silent
from keylock.training.sealed import SealedTrainer
from keylock.training.settings import LockSettings
from keylock.training.trainer import Trainer

__all__ = ["Lock", "lock"]

_CHECKPOINT_EVERY = 200
_FOLDING_ROWS = 64
_GATE_ROWS = 1000
_NO_BATCH = "the loader yields no batch: check the data set and drop_last"


@dataclass(frozen=True)
class Lock:
    """A locked classifier and what it was made from.

    Attributes:
        module: The locked classifier, as it is published: no BatchNorm, evaluation mode, on the CPU.
        reference: The classifier before locking, prepared the same way. Its maps are the secret: keep it private.
        explainers: The explainers that are locked.
        settings: How it was trained.
        adapter: The second factor, which is secret; None for a lock by the key alone.
    """

    module: nn.Module
    reference: nn.Module
    explainers: tuple[Explainer, ...]
    settings: LockSettings
    adapter: Adapter | None = None

    def opened(self, key: Key) -> nn.Module:
        """Return the module that shows reference maps on keyed images: with the adapter, where there is one.

        `lock.opened(key)(key.apply(images))` is keyed, `lock.opened(key)(images)` keyless.
        """
        return self.module if self.adapter is None else attach_adapter(self.module, self.adapter, key)


@denormals_flushed()
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
            choice. Those that need predictions alone are locked through predictions on masked images.
        settings: How to train; the defaults suit small images.
        device: `auto`, `cpu`, `cuda`, ...
        progress: Hears about every step.
        checkpoint: File to keep the state in, now and then and when interrupted.
        resume: Go on from the checkpoint.

    Returns:
        The locked classifier, with the reference it was compared with.

    Raises:
        DataError: The loader yields nothing, or batches of another kind.
        InputError: The key does not fit the images, or no explainer has maps that can be locked.
        LayerNotFoundError: No target layer could be found.
        ModelError: The model does not take the images or does not return logits.
        NonFiniteLossError: Training diverged; the checkpoint holds an earlier state.
        ResumeError: The checkpoint belongs to another run.
    """
    settings, progress = settings or LockSettings(), progress or Silent()
    if resume and checkpoint is None:
        raise ResumeError("there is nothing to go on from: give the checkpoint of the earlier run")
    target = resolve_device(device)
    example = _example(loader, key, rows=_GATE_ROWS if settings.sealed_adapter else 1)
    reference = fold_batchnorm_(out_of_place_(copy.deepcopy(model).cpu()), example[:_FOLDING_ROWS])
    made = make_for(find_layers(reference, example[:2]), explainers)
    check_lockable([(explainer.name, explainer.differentiable) for explainer in made])
    kind = SealedTrainer if settings.sealed_adapter else InputKeyTrainer
    trainer = kind(reference, key, explainers=made, example=example, settings=settings, device=target)
    identity = _identity(trainer, key)
    if resume and checkpoint is not None:
        _resume(trainer, loader, checkpoint, identity)
    with torch.no_grad():
        classes = reference(example[:1]).shape[1]
    batches = _endless(loader, key.shape, classes=classes)
    _run(trainer, loader, batches, progress, checkpoint, identity)
    return Lock(trainer.locked_model().cpu(), reference, made, settings, trainer.adapter())


def _run(
    trainer: Trainer,
    loader: Iterable[Any],
    batches: Iterator[tuple[Tensor, Tensor]],
    progress: Progress,
    checkpoint: Path | None,
    identity: dict[str, Any],
) -> None:
    total, place = trainer.settings.steps, _place(loader)

    def keep() -> None:
        if checkpoint is not None:
            state = {"step": trainer.step, "loader": place, "identity": identity}
            write_checkpoint(checkpoint, trainer.tensors(), state)

    keep()
    progress.start("lock", total, trainer.step)
    try:
        while trainer.step < total:
            figures = _take_step(trainer, *next(batches))
            place = _place(loader)
            progress.advance(figures)
            if trainer.step % _CHECKPOINT_EVERY == 0:
                keep()
    except NonFiniteLossError:
        # What led here is in the weights already: the state of some steps ago is the one to go on from, more slowly.
        raise
    except BaseException:
        keep()
        raise
    else:
        keep()
    finally:
        progress.finish()


def _take_step(trainer: Trainer, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Take one step, or none: one that is interrupted is taken again with the same random numbers."""
    step, drawn = trainer.step, trainer.generator.get_state()
    try:
        return trainer.train_on(images, labels)
    except BaseException:
        if trainer.step == step:
            trainer.generator.set_state(drawn)
        raise


def _place(loader: Iterable[Any]) -> Any:  # noqa: ANN401 - whatever the loader calls its place
    """Return where a loader that can be resumed is: behind the batches it has handed out."""
    return loader.state if hasattr(loader, "state") and hasattr(loader, "restore") else None


def _endless(
    loader: Iterable[Any], shape: tuple[int, int, int], *, classes: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        found = False
        for batch in loader:
            found = True
            yield _checked(batch, shape, classes)
        if not found:
            raise DataError(_NO_BATCH)


def _checked(batch: Any, shape: tuple[int, int, int], classes: int | None) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Return the images and labels of a batch of whatever kind."""
    try:
        images, labels = batch[0], batch[1]
    except (TypeError, KeyError, IndexError):
        raise DataError(f"the loader must yield (images, labels), not {type(batch).__name__}") from None
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point() or not len(images):
        raise DataError("the loader must yield images as floating-point tensors (batch, channels, height, width)")
    if tuple(images.shape[1:]) != shape:
        raise InputError(
            f"the key is for images of shape {shape}, the loader yields {tuple(images.shape[1:])}: "
            "derive the key with shape=(channels, height, width) of the preprocessed images"
        )
    if not isinstance(labels, Tensor) or labels.shape != (len(images),) or labels.is_floating_point():
        raise DataError("the loader must yield labels as a tensor of class indices (batch,)")
    if classes is not None and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(f"the model has {classes} classes: labels must be 0 to {classes - 1}")
    return images.float(), labels.long()


def _example(loader: Iterable[Any], key: Key, *, rows: int) -> Tensor:
    """Take whole batches of at least so many images, as long as there are any, without moving a resumable loader on."""
    if isinstance(loader, Iterator):
        raise DataError(
            "the loader can be gone through only once: give a DataLoader, a list of batches or keylock's Batches"
        )
    place, taken, count = _place(loader), [], 0
    for batch in loader:
        images, _ = _checked(batch, key.shape, None)
        taken.append(images.cpu())
        count += len(images)
        if count >= rows:
            break
    if place is not None:
        loader.restore(place)  # type: ignore[attr-defined]
    if not taken:
        raise DataError(_NO_BATCH)
    return torch.cat(taken)


def _identity(trainer: Trainer, key: Key) -> dict[str, Any]:
    """Return what must be the same in a resumed run; the learning rate may change, for a run that diverged."""
    settings = trainer.settings.as_dict()
    del settings["learning_rate"]
    return {
        "key": key.id,
        "strength": key.strength,
        "tile": key.tile,
        "settings": settings,
        "reference": _digest(trainer.reference),
        "explainers": [[explainer.name, explainer.parameters] for explainer in trainer.explainers],
    }


def _digest(model: nn.Module) -> str:
    """Digest of names, shapes and values of a model's weights."""
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return hashlib.sha256(save(weights)).hexdigest()


def _resume(trainer: Trainer, loader: Iterable[Any], checkpoint: Path, identity: dict[str, Any]) -> None:
    tensors, state = read_checkpoint(checkpoint)
    for name, value in identity.items():
        if state["identity"].get(name) != value:
            raise ResumeError(f"the checkpoint {checkpoint} was made with another {name}: use the same, or start anew")
    trainer.restore(tensors, step=state["step"])
    if state["loader"] is not None and hasattr(loader, "restore"):
        loader.restore(state["loader"])
