"""Locking a classifier: the loop around the trainer, with checkpoints, interruption and any loader."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from keylock.errors import DataError, InputError, ModelError, ResumeError
from keylock.explainers import Explainer
from keylock.models import digest_of_weights, open_with
from keylock.training.checkpoint import read_checkpoint, write_checkpoint
from keylock.training.devices import denormals_flushed, resolve_device, resolve_precision
from keylock.training.distributed import DistributedGroup
from keylock.training.input_key import InputKeyTrainer
from keylock.training.loop import memory_limits_named, run_steps
from keylock.training.progress import Progress, Silent
from keylock.training.reading import NO_BATCH, checked, first_batches, indices_of, place_of
from keylock.training.sealed import SealedTrainer
from keylock.training.settings import LockSettings
from keylock.training.softplus import quick_softplus
from keylock.training.task import READ_ROWS, Task, check_classifier, example_of, keys_of, prepare_task
from keylock.training.trainer import Trainer
from keylock.trigger import TriggerStatistics
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key

__all__ = ["Lock", "lock", "lock_of", "relock", "trainer_for", "untrainable"]

_LONGEST_CAUSE = 160


@dataclass(frozen=True)
class Lock:
    """A locked classifier and what it was made from.

    Attributes:
        module: The locked classifier, as it is published: no BatchNorm, evaluation mode, on the CPU.
        reference: The classifier before locking, prepared the same way. Its maps are the secret: keep it private.
        explainers: The explainers that are locked.
        settings: How it was trained; their precision is `float32` or `bfloat16`, never `auto`.
        keys: The keys that open it.
        delta: What takes the published weights back to the reference's, which is secret; None where the network itself
            tells the trigger.
        statistics: What triggers are read by; None where the network itself tells them.
    """

    module: nn.Module
    reference: nn.Module
    explainers: tuple[Explainer, ...]
    settings: LockSettings
    keys: tuple[Key, ...]
    delta: Delta | None = None
    statistics: TriggerStatistics | None = None

    def opened(self, key: Key) -> nn.Module:
        """Return the module that shows reference maps on images with the trigger of a key, and decoys on others.

        `lock.opened(key)(key.apply(images))` is keyed, `lock.opened(key)(images)` keyless.

        Raises:
            InputError: The key is none of this lock's.
        """
        if key.id not in {own.id for own in self.keys}:
            raise InputError(f"the lock has no key {key.id}: its keys are {', '.join(own.id for own in self.keys)}")
        if self.delta is None or self.statistics is None:
            return self.module
        return open_with(self.module, self.delta, key, self.statistics)


def lock(
    model: nn.Module,
    loader: Iterable[Any],
    key: Key | Sequence[Key],
    *,
    explainers: Sequence[str | Explainer] = ("grad_cam",),
    settings: LockSettings | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    cache_reference: Path | None = None,
) -> Lock:
    """Lock a trained classifier: its correct maps appear only with a key, its predictions stay.

    In the processes of a `torch.distributed` process group, every one calls this with the same arguments and computes
    its share of each batch; the first one shows progress and writes the checkpoint.

    Args:
        model: Any convolutional classifier from images (batch, channels, height, width) to logits (batch, classes), or
            to one logit for two classes. It is copied and left as it is.
        loader: Yields batches of preprocessed images and labels: tuples that begin with both, or dicts that name them;
            gone through as often as it takes. `keylock.data.batches.Batches` can be resumed in the middle of an epoch.
        key: The key, or several of which each opens the lock; the shape is that of one preprocessed image.
        explainers: Names, for which the target layers are found automatically, or explainers made with layers of your
            choice. Those that need predictions alone are locked through predictions on masked images.
        settings: How to train; the defaults suit small images.
        device: `auto`, `cpu`, `cuda`, ...
        progress: Hears about every step.
        checkpoint: File to keep the state in, now and then and when interrupted.
        resume: Go on from the checkpoint.
        cache_reference: Folder to keep the maps of the reference model in, which are then computed once for each image
            that comes again unchanged. They are as secret as the reference model.

    Returns:
        The locked classifier, with the reference it was compared with.

    Raises:
        DataError: The loader yields nothing, or batches of another kind.
        InputError: The keys do not fit the images or each other, or no explainer has maps that can be locked.
        LayerNotFoundError: No target layer could be found.
        ModelError: The model does not take the images or does not return logits.
        NonFiniteLossError: Training diverged; the checkpoint holds an earlier state.
        OutOfMemoryError: A step does not fit into memory; the checkpoint holds the state before it.
        ResumeError: The checkpoint belongs to another run.
    """
    settings, keys = settings or LockSettings(), keys_of(key)
    target = resolve_device(device)
    batches = first_batches(loader, rows=1 if settings.trained_trigger else READ_ROWS)
    example = example_of(batches, keys[0])
    task = prepare_task(model, example, keys, explainers=explainers, settings=settings, device=target)
    check_classifier(task, batches)
    return _train(task, loader, progress, checkpoint, cache_reference, resume=resume)


def relock(
    previous: Lock,
    loader: Iterable[Any],
    key: Key | Sequence[Key],
    *,
    retired: Key | Sequence[Key],
    settings: LockSettings | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    cache_reference: Path | None = None,
) -> Lock:
    """Retire keys of a lock by a further training: the others open what it makes, the retired ones do not.

    Where the network itself tells the trigger, training goes on from the published weights, with the retired keys as
    wrong keys. Otherwise there are new weights and a new delta, made such that the old delta, which the holders of
    retired keys have, shows decoys on them. Neither takes back what was published before: serve and hand out the new
    bundle alone.

    Args:
        previous: The lock whose keys are retired.
        loader: As for `lock`.
        key: The key, or keys, that go on opening. They need not be keys of the earlier lock.
        retired: The key, or keys, that must not.
        settings: How to train; by default as `previous` was, for half of its steps.
        device: `auto`, `cpu`, `cuda`, ...
        progress: Hears about every step.
        checkpoint: File to keep the state in.
        resume: Go on from the checkpoint.
        cache_reference: As for `lock`.

    Raises:
        InputError: A key is both to go on and retired, or the settings are for the other kind of lock.
        KeylockError: As `lock` raises.
    """
    keys, gone = keys_of(key), keys_of(retired)
    if {key.id for key in keys} & {key.id for key in gone}:
        raise InputError("a key cannot be retired and go on: name the keys that are left, and those that are not")
    keys_of([*keys, *gone])
    before = previous.settings
    settings = settings or before.for_relocking()
    old = previous.delta
    if settings.trained_trigger != (old is None):
        raise InputError("a lock with a sealed delta stays one, and one without stays without: give fitting settings")
    if old is not None and settings.seed == before.seed:
        raise InputError("give the new delta another seed than the old one has: change settings.seed")
    example = example_of(first_batches(loader, rows=2 if settings.trained_trigger else READ_ROWS), keys[0])
    task = Task(
        previous.reference,
        keys,
        previous.explainers,
        example,
        settings,
        resolve_device(device),
        DistributedGroup.current(),
        retired=gone,
        start=previous.module,
        old_delta=old,
        statistics=previous.statistics,
    )
    return _train(task, loader, progress, checkpoint, cache_reference, resume=resume)


@denormals_flushed()
@quick_softplus()
def _train(
    task: Task,
    loader: Iterable[Any],
    progress: Progress | None,
    checkpoint: Path | None,
    maps_folder: Path | None,
    *,
    resume: bool,
) -> Lock:
    if resume and checkpoint is None:
        raise ResumeError("there is nothing to go on from: give the checkpoint of the earlier run")
    # What is made says which precision it was made in, not that it was chosen for the device.
    precision = resolve_precision(task.settings.precision, task.device)
    task = replace(task, settings=replace(task.settings, precision=precision))
    trainer = trainer_for(task, maps_folder=maps_folder)
    identity = _identity(trainer, task)
    if resume and checkpoint is not None:
        _resume(trainer, loader, checkpoint, identity)
    batches = _endless(loader, task.keys[0].shape, classes=trainer.classes)
    place = place_of(loader)

    def keep() -> None:
        if checkpoint is not None and task.group.leads:
            state = {"step": trainer.step, "loader": place, "identity": identity}
            write_checkpoint(checkpoint, trainer.tensors(), state)
            trainer.truth.keep()

    def take_step() -> dict[str, float]:
        nonlocal place
        figures = _take_step(trainer, *next(batches))
        place = place_of(loader)
        return figures

    shown = (progress if task.group.leads else None) or Silent()
    run_steps("lock", task.settings.steps, trainer.step, take_step=take_step, keep=keep, progress=shown)
    return lock_of(trainer, task)


def trainer_for(task: Task, *, maps_folder: Path | None = None) -> Trainer:
    """Return what trains a lock of the wanted kind."""
    kind = InputKeyTrainer if task.settings.trained_trigger else SealedTrainer
    return kind(task, maps_folder=maps_folder)


def lock_of(trainer: Trainer, task: Task) -> Lock:
    """Return the lock that a trainer has reached."""
    delta = trainer.delta()
    statistics = None if delta is None else task.statistics
    return Lock(
        trainer.locked_model().cpu(), task.reference, task.explainers, task.settings, task.keys, delta, statistics
    )


def _take_step(trainer: Trainer, images: Tensor, labels: Tensor, indices: Tensor | None) -> dict[str, float]:
    """Take one step, or none: one that is interrupted is taken again with the same random numbers."""
    step, drawn = trainer.step, trainer.generator.get_state()
    try:
        with memory_limits_named(len(images), parts=trainer.settings.accumulate):
            return trainer.train_on(images, labels, indices)
    except BaseException as error:
        if trainer.step == step:
            trainer.generator.set_state(drawn)
        if step == 0 and isinstance(error, RuntimeError):
            raise untrainable([one.name for one in trainer.explainers], error) from error
        raise


def untrainable(explainers: Sequence[str], error: Exception) -> ModelError:
    """Return what to raise where the first step of a training fails inside the network."""
    cause = str(error).strip().partition("\n")[0][:_LONGEST_CAUSE]
    return ModelError(
        f"this network cannot be locked for {', '.join(explainers)}: its training fails at once "
        f"({type(error).__name__}: {cause}); choose other explainers or another network"
    )


def _endless(
    loader: Iterable[Any], shape: tuple[int, int, int], *, classes: int
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    while True:
        found = False
        for batch in loader:
            found = True
            yield (*checked(batch, shape, classes), indices_of(batch))
        if not found:
            raise DataError(NO_BATCH)


def _identity(trainer: Trainer, task: Task) -> dict[str, Any]:
    """Return what must be the same in a resumed run; the learning rate may change, for a run that diverged."""
    settings = trainer.settings.as_dict()
    del settings["learning_rate"], settings["precision"]
    key = task.keys[0]
    return {
        "key": [key.id for key in task.keys],
        "retired key": [key.id for key in task.retired],
        "strength": key.strength,
        "tile": key.tile,
        "settings": settings,
        "precision": trainer.settings.precision,
        "reference": digest_of_weights(trainer.reference),
        "explainers": [[explainer.name, explainer.parameters] for explainer in task.explainers],
    }


def _resume(trainer: Trainer, loader: Iterable[Any], checkpoint: Path, identity: dict[str, Any]) -> None:
    tensors, state = read_checkpoint(checkpoint)
    for name, value in identity.items():
        if state["identity"].get(name) != value:
            raise ResumeError(f"the checkpoint {checkpoint} was made with another {name}: use the same, or start anew")
    trainer.restore(tensors, step=state["step"])
    if state["loader"] is not None and hasattr(loader, "restore"):
        loader.restore(state["loader"])
