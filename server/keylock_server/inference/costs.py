"""What the explainers of a model cost beside each other, measured on the machine that serves them."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from keylock_server.inference.backends import passes_of
from keylock_server.inference.runtime import ServedModel

__all__ = ["ExplainerCost", "measure_costs"]

_LEAST_S: Final = 0.2
"""For how much processor time an explainer runs in a round at least, so that the clock is fine enough."""


@dataclass(frozen=True, slots=True)
class ExplainerCost:
    """What an explainer costs.

    Attributes:
        name: Its name.
        passes: How often the network runs for one image.
        cpu_ms: Processor time of one image in milliseconds, the median of the rounds.
        predictions: The same, in predictions of an image.
        units: What is proposed as its price: its cost over that of the cheapest explainer, rounded, at least 1.
    """

    name: str
    passes: int
    cpu_ms: float
    predictions: float
    units: int


def measure_costs(
    model: ServedModel, *, rounds: int = 3, batch: int = 1, clock: Callable[[], float] = time.process_time
) -> list[ExplainerCost]:
    """Measures a model, without its key: rows with it run the same operations.

    Explainers take turns in rounds, so that whatever else the machine does concerns all of them.

    Args:
        model: What is measured.
        rounds: How often, after one that warms up.
        batch: Images in a run.
        clock: Processor time of the process, in seconds.

    Returns:
        Its explainers, in its order.
    """
    shape = model.manifest.preprocessing.shape
    images = np.random.default_rng(0).standard_normal((batch, *shape), np.float32)
    targets, keyed = np.full(batch, -1, np.int64), np.zeros(batch, np.bool_)

    def explaining(name: str) -> Callable[[], object]:
        return lambda: model.explain(images, explainer=name, targets=targets, keyed=keyed)

    runs: dict[str, Callable[[], object]] = {"": lambda: model.predict(images)}
    runs |= {name: explaining(name) for name in model.explainers}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            seconds = _seconds(run, clock) / batch
            if number:
                found[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in found.items()}
    cheapest = min((medians[name] for name in model.explainers), default=1.0)
    return [
        ExplainerCost(
            name=name,
            passes=passes_of(entry, shape),
            cpu_ms=medians[name] * 1000,
            predictions=medians[name] / medians[""],
            units=max(1, round(medians[name] / cheapest)),
        )
        for name, entry in model.explainers.items()
    ]


def _seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Returns what one of several runs takes."""
    begun, count = clock(), 0
    while not count or clock() - begun < _LEAST_S:
        run()
        count += 1
    return (clock() - begun) / count
