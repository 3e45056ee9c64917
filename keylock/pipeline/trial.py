"""A lock tried before it is trained: one step on two images, and every graph that its bundle needs.

What fails here would have failed after the training. It costs seconds for a small network. For a large one the graphs
are many times as dear, so that there is a limit, after which the rest is left to be seen.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic

import numpy as np
import torch
from torch import Tensor, nn

from keylock.data.batches import Batches, load_batch
from keylock.errors import ExportError
from keylock.export import make_variant
from keylock.models import arrays_of, create
from keylock.pipeline.graphs import make_graphs
from keylock.pipeline.plans import TrainPlan
from keylock.training import Lock, Progress, first_step, resolve_device
from keylock.training.task import READ_ROWS, Task, prepare_task
from keylock.trigger.keys import Key

__all__ = ["TRIAL_SECONDS", "Trial", "task_of", "try_lock", "untrained"]

TRIAL_SECONDS = 60.0
"""After so many seconds no further graph is begun."""

_LOG = logging.getLogger(__name__)
_STAGE = "check"


@dataclass(frozen=True)
class Trial:
    """What was tried.

    Attributes:
        checked: What was compiled and compared with torch.
        unchecked: What there was no time for: it is compiled for the first time after the training.
    """

    checked: tuple[str, ...]
    unchecked: tuple[str, ...]


def untrained(plan: TrainPlan) -> nn.Module:
    """Return the network of a plan with initial weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model = create(
            plan.architecture,
            num_classes=len(plan.data.classes),
            channels=plan.data.preprocessing.channels,
            image_size=plan.data.preprocessing.size[0],
        )
    return model.eval()


def task_of(plan: TrainPlan, reference: nn.Module, keys: tuple[Key, ...]) -> Task:
    """Return what a plan locks, told on as many images as a training does.

    Raises:
        KeylockError: As `keylock.training.lock.prepare_task`.
    """
    return prepare_task(
        reference,
        _example(plan),
        keys,
        explainers=plan.explainers,
        settings=plan.settings,
        device=resolve_device(plan.device),
    )


def try_lock(
    plan: TrainPlan,
    reference: nn.Module,
    keys: tuple[Key, ...],
    *,
    progress: Progress,
    seconds: float = TRIAL_SECONDS,
    clock: Callable[[], float] = monotonic,
) -> Trial:
    """Try a lock: one step, then the graphs of predictions and explainers, then those in reduced precision.

    An explainer that does not compile is not an error, nor is it when a bundle is published: a warning in the log says
    that a server without torch will not offer it.

    Args:
        plan: What is going to be trained.
        reference: The network, trained or not.
        keys: The keys.
        progress: Hears about every step.
        seconds: After so many no further graph is begun.
        clock: Seconds.

    Raises:
        ExportError: The predictions do not compile, or a compiled graph disagrees with torch.
        ModelError: The network cannot be locked for these explainers.
    """
    begun = clock()
    graphs = ["predictions", *plan.explainers]
    smaller = [f"{name} of {graph}" for name in plan.variants for graph in graphs]
    progress.start(_STAGE, 1 + len(graphs) + len(smaller), 0)
    two = load_batch(plan.data.train, plan.data.preprocessing, indices=np.arange(2) % len(plan.data.train))
    tried = first_step(task_of(plan, reference, keys), two.images, two.labels)
    progress.advance({})
    compiler = _Compiler(plan, tried, keys[0], two.images)
    checked: list[str] = []
    for what in (*graphs, *smaller):
        if clock() - begun < seconds:
            compiler.compile(what)
            checked.append(what)
        progress.advance({})
    progress.finish()
    unchecked = tuple(what for what in (*graphs, *smaller) if what not in checked)
    if unchecked:
        _LOG.warning(
            "after %.0f s of trying these were not compiled: %s; whether they compile is known after the training",
            clock() - begun,
            ", ".join(unchecked),
        )
    return Trial(tuple(checked), unchecked)


class _Compiler:
    """Compiles the graphs of a lock one by one, each compared with torch on two images."""

    def __init__(self, plan: TrainPlan, lock: Lock, key: Key, images: Tensor) -> None:
        self._plan, self._lock, self._images = plan, lock, images.numpy()
        self._key = key
        self._compiled: dict[str, bytes] = {}
        self._places: dict[str, str] = {}

    def compile(self, what: str) -> None:
        """Compile one of `predictions`, the explainers, or `VARIANT of GRAPH`."""
        variant, of, graph = what.rpartition(" of ")
        if of:
            self._smaller(variant, graph)
            return
        explainers = tuple(one for one in self._lock.explainers if one.name == what)
        made = make_graphs(
            replace(self._lock, explainers=explainers),
            self._images,
            key=self._key,
            image_shape=self._plan.data.preprocessing.shape,
            num_classes=len(self._plan.data.classes),
            on_step=lambda _what: None,
            compiled=self._compiled,
        )
        self._places["predictions"] = made.prediction
        self._places |= {entry.name: entry.graph for entry in made.entries if entry.graph and entry.runtime == "onnx"}

    def _smaller(self, variant: str, graph: str) -> None:
        """Make a variant; how much it loses is known of a trained lock alone."""
        if graph not in self._places:
            return
        try:
            make_variant(
                variant, self._compiled[self._places[graph]], self._images, weights=arrays_of(self._lock.module)
            )
        except ExportError as error:
            _LOG.warning("%s of %s will be left out: %s", variant, graph, error.message)


def _example(plan: TrainPlan) -> Tensor:
    """Return training images (count, channels, height, width) as a training sees them."""
    rows = np.random.default_rng(plan.seed).permutation(len(plan.data.train))[:READ_ROWS]
    batches = Batches(
        plan.data.train.take(rows),
        plan.data.preprocessing,
        batch_size=len(rows),
        seed=plan.seed,
        augmentation=None if plan.cache_reference else plan.data.augmentation,
    )
    return next(iter(batches)).images
