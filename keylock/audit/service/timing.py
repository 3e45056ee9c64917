"""Whether the time of an answer tells whether the key was on the input: a two-sample test."""

import math
import time

import numpy as np
import torch

from keylock.audit.budgets import Budget
from keylock.audit.contract import Check, Cost, Goal, Knowledge, Outcome, Steps, attack
from keylock.audit.scoring import separation
from keylock.audit.service.bench import Bench

__all__ = ["mann_whitney"]

_WARM_UP = 20
_SIGNIFICANCE = 0.01
_LARGEST_EFFECT = 0.05


def mann_whitney(first: torch.Tensor, second: torch.Tensor) -> tuple[float, float]:
    """Compare two samples (n,), (m,) of times.

    Returns:
        The probability that a value of the first is larger than one of the second, and the two-sided p-value of the
        hypothesis that neither is the larger, in the normal approximation without a correction for ties.

    References:
        Mann and Whitney, "On a Test of Whether one of Two Random Variables is Stochastically Larger than the Other",
        Annals of Mathematical Statistics 18, 1947.
    """
    larger = separation(first, second)
    count, other = len(first), len(second)
    deviation = math.sqrt((count + other + 1) / (12 * count * other))
    return larger, math.erfc(abs(larger - 0.5) / deviation / math.sqrt(2))


@attack(
    "service/timing",
    Knowledge.T0,
    "Time licensed and unlicensed calls by turns, and tell them apart.",
    goal=Goal.SERVICE,
)
def timing(bench: Bench, budget: Budget, generator: torch.Generator, steps: Steps) -> Outcome:
    """Ask for the same image with and without a license, in random order, and compare the times.

    The check is bad where the difference is both significant and large enough to be used: with thousands of calls the
    microseconds that it takes to verify a license are significant too.
    """
    times: dict[bool, list[float]] = {True: [], False: []}
    with bench.channel() as channel:
        for step in steps(_WARM_UP + budget.calls):
            order = (True, False) if int(torch.randint(2, (1,), generator=generator)) else (False, True)
            for licensed in order:
                begun = time.perf_counter()
                bench.explain(channel, 0, token=bench.token if licensed else None)
                if step >= _WARM_UP:
                    times[licensed].append(time.perf_counter() - begun)
    larger, p_value = mann_whitney(torch.tensor(times[True]), torch.tensor(times[False]))
    medians = {licensed: 1e3 * float(np.median(found)) for licensed, found in times.items()}
    told = p_value < _SIGNIFICANCE and abs(larger - 0.5) > _LARGEST_EFFECT
    value = f"licensed takes longer with probability {larger:.3f}, p = {p_value:.2g}, medians "
    return Outcome(
        checks=(Check("time of an answer", not told, value + f"{medians[True]:.2f} and {medians[False]:.2f} ms"),),
        cost=Cost(queries=2 * budget.calls),
        notes={
            "calls": budget.calls,
            "probability": round(larger, 4),
            "p": float(f"{p_value:.3g}"),
            "median licensed, ms": round(medians[True], 3),
            "median unlicensed, ms": round(medians[False], 3),
        },
    )
