"""One step of a lock on a few images: whether a network can be locked at all, known before the training begins."""

from collections.abc import Callable
from dataclasses import replace
from time import monotonic

from torch import Tensor

from keylock.errors import KeylockError
from keylock.training.devices import denormals_flushed
from keylock.training.distributed import DistributedGroup
from keylock.training.lock import Lock, lock_of, trainer_for, untrainable
from keylock.training.loop import memory_limits_named
from keylock.training.softplus import quick_softplus
from keylock.training.task import Task

__all__ = ["first_step", "time_steps"]


@denormals_flushed()
@quick_softplus()
def first_step(task: Task, images: Tensor, labels: Tensor) -> Lock:
    """Lock a network for one step, which goes through everything that a training does.

    Args:
        task: What to lock, as `keylock.training.lock.prepare_task` makes it.
        images: Preprocessed images (batch, channels, height, width); two are enough.
        labels: Class indices (batch,).

    Returns:
        The lock, which shows nearly the reference's maps to everybody: it is for trying what comes after a training.

    Raises:
        ModelError: The network cannot be locked for these explainers; the message says for which.
        NonFiniteLossError: A loss term is NaN or infinite from the start.
    """
    settings = replace(task.settings, accumulate=1, compile=False, search_every=0)
    alone = replace(task, settings=settings, group=DistributedGroup())
    trainer = trainer_for(alone)
    try:
        with memory_limits_named(len(images)):
            trainer.train_on(images, labels)
    except KeylockError:
        raise
    except Exception as error:
        raise untrainable(_at_fault(alone, images, labels), error) from error
    return replace(lock_of(trainer, task), settings=task.settings)


@denormals_flushed()
@quick_softplus()
def time_steps(
    task: Task, images: Tensor, labels: Tensor, *, count: int, clock: Callable[[], float] = monotonic
) -> float:
    """Return how long a step takes, in seconds: the quickest of a few.

    Args:
        task: What to lock.
        images: A batch of the size that is trained with (batch, channels, height, width).
        labels: Its class indices (batch,).
        count: How many steps to take, at least 2; the first warms up.
        clock: Seconds.

    Raises:
        KeylockError: As a training does; `OutOfMemoryError` where a step does not fit into memory.
    """
    trainer = trainer_for(replace(task, group=DistributedGroup()))
    times = []
    for _ in range(count):
        begun = clock()
        with memory_limits_named(len(images), parts=task.settings.accumulate):
            trainer.train_on(images, labels)
        times.append(clock() - begun)
    return min(times[1:])


def _at_fault(task: Task, images: Tensor, labels: Tensor) -> list[str]:
    """Name the explainers that fail by themselves, or all of them where none does."""
    lockable = [explainer for explainer in task.explainers if explainer.differentiable]
    failing = []
    for explainer in lockable if len(lockable) > 1 else ():
        try:
            trainer_for(replace(task, explainers=(explainer,))).train_on(images, labels)
        except Exception:
            failing.append(explainer.name)
    return failing or [explainer.name for explainer in task.explainers]
