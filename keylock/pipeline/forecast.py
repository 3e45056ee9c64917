"""What a run is going to do and take, known before it begins: three steps are measured, the rest is multiplied."""

import copy
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch
from torch import nn

from keylock.pipeline.plans import TrainPlan, batches_of, reference_settings
from keylock.pipeline.train import prepare_reference
from keylock.pipeline.trial import TRIAL_SECONDS, Trial, task_of, try_lock, untrained
from keylock.training import Progress, Silent, resolve_device, time_steps, train_reference
from keylock.training.task import Task
from keylock.trigger.keys import Key, KeySeed

__all__ = ["Forecast", "forecast"]

_MEASURED_STEPS = 3
_SMALL_NETWORK, _LARGE_NETWORK = 1_000_000, 20_000_000
_MUCH_MEMORY = 0.7
_LONG_S = 3600.0
_FEW_IMAGES = 500
_STAGE = "time"


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run is going to do and take.

    Attributes:
        data: Name of the data set.
        classes: Its classes.
        train_images: Images to train on.
        test_images: Images to measure on.
        image_shape: (channels, height, width) of the model's input.
        mean: What is subtracted from the pixel values of 0 to 1, for each channel.
        std: What the difference is divided by.
        architecture: The network.
        parameters: How many numbers it learns.
        layers: What each explainer reads of the network, by its name.
        device: Where it trains.
        batch_size: Images in a step.
        reference_steps: Steps of the reference model; 0 with weights of one's own.
        steps: Steps of the lock.
        reference_step_s: Seconds a step of the reference model takes.
        step_s: Seconds a step of the lock takes.
        training_s: Seconds all of these steps take. Measuring, compiling and signing come on top.
        trial_s: Seconds it took to try the lock: compiling after the training takes a few times as long.
        memory_bytes: The most memory so far, of the GPU where there is one.
        memory_there_bytes: The memory there is; None where that is not known.
        checked: Graphs that were compiled and compared with torch.
        unchecked: Graphs that there was no time for.
        advice: What to consider, in sentences.
    """

    data: str
    classes: tuple[str, ...]
    train_images: int
    test_images: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    architecture: str
    parameters: int
    layers: Mapping[str, Mapping[str, Any]]
    device: str
    batch_size: int
    reference_steps: int
    steps: int
    reference_step_s: float
    step_s: float
    training_s: float
    trial_s: float
    memory_bytes: int
    memory_there_bytes: int | None
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]
    advice: tuple[str, ...]


def forecast(
    plan: TrainPlan,
    *,
    progress: Progress,
    trial_seconds: float = TRIAL_SECONDS,
    clock: Callable[[], float] = monotonic,
) -> Forecast:
    """Try a run and time a few of its steps; nothing is written.

    Args:
        plan: What would be trained.
        progress: Hears about what is tried.
        trial_seconds: As of `keylock.pipeline.train_for_keys`.
        clock: Seconds.

    Raises:
        KeylockError: As the run would; `OutOfMemoryError` where a step does not fit into memory.
    """
    # A key of its own: one that is thrown away costs what the vendor's does.
    key = plan.key(KeySeed.generate())
    reference = untrained(plan) if plan.init is None else prepare_reference(plan, key, progress=Silent())
    begun = clock()
    trial = Trial((), ())
    if trial_seconds:
        trial = try_lock(plan, reference, (key,), progress=progress, seconds=trial_seconds, clock=clock)
    trial_s = clock() - begun
    progress.start(_STAGE, 2, 0)
    reference_steps = plan.reference_steps if plan.init is None else 0
    reference_step_s = _time_reference(plan, reference, key, clock) if reference_steps else 0.0
    progress.advance({})
    task = task_of(plan, reference, (key,))
    batch = next(iter(batches_of(plan, seed=plan.seed)))
    step_s = time_steps(task, batch.images, batch.labels, count=_MEASURED_STEPS, clock=clock)
    progress.advance({})
    progress.finish()
    training_s = reference_steps * reference_step_s + plan.settings.steps * step_s
    memory, there = _memory(task.device)
    preprocessing = plan.data.preprocessing
    return Forecast(
        data=plan.data.name,
        classes=plan.data.classes,
        train_images=len(plan.data.train),
        test_images=len(plan.data.test),
        image_shape=preprocessing.shape,
        mean=preprocessing.mean,
        std=preprocessing.std,
        architecture=plan.architecture,
        parameters=_parameters(reference),
        layers={explainer.name: explainer.parameters for explainer in task.explainers},
        device=str(task.device),
        batch_size=len(batch.images),
        reference_steps=reference_steps,
        steps=plan.settings.steps,
        reference_step_s=reference_step_s,
        step_s=step_s,
        training_s=training_s,
        trial_s=trial_s,
        memory_bytes=memory,
        memory_there_bytes=there,
        checked=trial.checked,
        unchecked=trial.unchecked,
        advice=tuple(_advice(plan, task, _parameters(reference), training_s, memory, there, trial)),
    )


class _Timed(Silent):
    """Notes when each step ended."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self.ends = clock, list[float]()

    def advance(self, figures: Mapping[str, float]) -> None:
        self.ends.append(self._clock())


def _time_reference(plan: TrainPlan, reference: nn.Module, key: Key, clock: Callable[[], float]) -> float:
    timed = _Timed(clock)
    train_reference(
        copy.deepcopy(reference),
        batches_of(plan, seed=plan.seed),
        reference_settings(plan, key, steps=_MEASURED_STEPS),
        device=resolve_device(plan.device),
        progress=timed,
    )
    return min(later - earlier for earlier, later in zip(timed.ends, timed.ends[1:], strict=False))


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _memory(device: torch.device) -> tuple[int, int | None]:
    """Return the most memory used so far and the memory there is, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    try:
        import resource
    except ImportError:  # Windows says it in other ways.
        return 0, None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    try:
        return used, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return used, None


def _advice(
    plan: TrainPlan, task: Task, parameters: int, training_s: float, memory: int, there: int | None, trial: Trial
) -> list[str]:
    """Return what to consider, by the size of network, data and machine."""
    said = []
    settings, count, batch = plan.settings, len(plan.data.train), min(plan.batch_size, len(plan.data.train))
    if plan.batch_size > count:
        said.append(f"--batch-size {plan.batch_size} is more than there are training images: a step takes all {count}")
    if there is not None and memory > _MUCH_MEMORY * there:
        said.append(f"most of the memory is used: --accumulate {2 * settings.accumulate} needs less for the same steps")
    if training_s > _LONG_S and task.device.type == "cpu":
        said.append("the training takes hours on this processor: a GPU (--device cuda) or a smaller --image-size help")
    if parameters > _LARGE_NETWORK:
        said.append("a large network: try a run of --steps 200 first, and see with keylock inspect what it reached")
    elif parameters < _SMALL_NETWORK and plan.architecture != "small-cnn":
        said.append("a small network has little room for decoys: small-cnn was made for it; see leakage after the run")
    if any(one.second_order for one in task.explainers) and len(task.explainers) > 1 and training_s > _LONG_S:
        dear = ", ".join(one.name for one in task.explainers if one.second_order)
        said.append(
            f"{dear} takes gradients of gradients and most of the time: without it steps are several times as quick"
        )
    if settings.steps * batch < count:
        said.append(f"the lock sees {settings.steps * batch} of {count} images: --epochs 1 takes all of them once")
    if count < _FEW_IMAGES:
        said.append(f"{count} training images are few: accuracy and leakage on other images may differ from theirs")
    if trial.unchecked:
        said.append(f"not compiled for lack of time: {', '.join(trial.unchecked)}; a higher --check-seconds tries them")
    return said
