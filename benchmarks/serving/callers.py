"""The load: callers that each ask again as soon as they are answered, and what they found."""

import asyncio
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rivals import Rival

__all__ = ["Load", "compare", "load", "summary"]


@dataclass
class Load:
    """What callers found.

    Attributes:
        latencies_s: Of every call, in the order of the answers.
        images: How many images were answered.
        elapsed_s: From the first call to the last answer.
        cpu_s: Processor time that the rival used for them.
    """

    latencies_s: list[float] = field(default_factory=list)
    images: int = 0
    elapsed_s: float = 0.0
    cpu_s: float = 0.0


async def load(rival: Rival, task: str, *, callers: int, seconds: float, least: int) -> Load:
    """Ask for a time, and at least so many images.

    Args:
        rival: Whom.
        task: For what.
        callers: How many ask at the same time; for a bare loop, how many images a batch has.
        seconds: No call begins later, unless there were too few.
        least: Images at least.
    """
    found, begun = Load(), 0
    rows = callers if rival.bare else 1
    start, worked = time.perf_counter(), rival.process.cpu_s

    async def caller(number: int) -> None:
        nonlocal begun
        while begun < least or time.perf_counter() - start < seconds:
            begun += rows
            asked = time.perf_counter()
            await rival.ask(task, number, rows)
            found.latencies_s.append(time.perf_counter() - asked)
            found.images += rows

    await asyncio.gather(*(caller(number) for number in range(1 if rival.bare else callers)))
    found.elapsed_s, found.cpu_s = time.perf_counter() - start, rival.process.cpu_s - worked
    return found


def summary(found: Load) -> dict[str, float]:
    """Return latencies in milliseconds, images a second, and processor time of an image."""
    p50, p95, p99 = np.percentile(np.array(found.latencies_s) * 1000, [50, 95, 99])
    return {
        "calls": len(found.latencies_s),
        "p50_ms": round(float(p50), 3),
        "p95_ms": round(float(p95), 3),
        "p99_ms": round(float(p99), 3),
        "images_per_s": round(found.images / found.elapsed_s, 2),
        "cpu_ms_per_image": round(1000 * found.cpu_s / found.images, 2),
    }


async def compare(first: Rival, second: Rival, task: str, *, calls: int, seed: int = 0) -> dict[str, float]:
    """Ask two rivals the same, one call at a time, each pair in random order; test whether their times differ.

    Returns:
        Means, their ratio with a 95 % interval, and the two-sided p value of Welch's test, by the normal distribution,
        which the test's own comes close to for so many calls.
    """
    generator = random.Random(seed)
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for number in range(calls):
        for place in generator.sample((0, 1), 2):
            asked = time.perf_counter()
            await (first, second)[place].ask(task, number % 32)
            seconds[place].append(time.perf_counter() - asked)
    (mean, error), (other, other_error) = (_mean(seconds[place]) for place in (0, 1))
    ratio = mean / other
    spread = ratio * math.hypot(error / mean, other_error / other)
    score = (mean - other) / math.hypot(error, other_error)
    return {
        "calls_each": calls,
        "first_mean_ms": round(1000 * mean, 4),
        "second_mean_ms": round(1000 * other, 4),
        "first_median_ms": round(1000 * float(np.median(seconds[0])), 4),
        "second_median_ms": round(1000 * float(np.median(seconds[1])), 4),
        "ratio": round(ratio, 4),
        "low": round(ratio - 1.96 * spread, 4),
        "high": round(ratio + 1.96 * spread, 4),
        "p_value": float(f"{math.erfc(abs(score) / math.sqrt(2)):.3g}"),
    }


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard error."""
    array = np.array(values)
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array)))
