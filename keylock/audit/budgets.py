"""What an attacker may spend, by suite: one table."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from keylock.errors import UnknownNameError

__all__ = ["SUITES", "Budget", "budget_of"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every attack of a suite may spend.

    Attributes:
        images: Test images whose true maps are wanted, and on which everything is measured.
        slow_images: How many of these are given to methods that ask hundreds of times for each.
        own_images: Images the attacker has, with labels.
        few_images: How many of these count as few.
        pairs: Keyed pairs of T2.
        batch: Images in a gradient step.
        few_steps: Gradient steps on few images.
        steps: Gradient steps on all of them.
        search_steps: Gradient steps of a search for a key or a delta.
        search_batch: Images in such a step.
        restarts: How often a search starts anew.
        guesses: Random keys tried.
        climb_steps: Steps of searches by queries.
        climb_images: Images in each of their queries.
        other_classes: How many other classes' maps are asked for, at most.
        toolkit_images: Images given to each method of public toolkits.
        whole_toolkits: 1 where every method of public toolkits is run, 0 where one of each kind is.
        accurate_steps: Gradient steps of an own network that is to be as accurate as the published one, at most.
        copies: Copies of an image that are averaged over.
        masks: Masked images that a perturbation explainer asks for.
        copied_images: Images whose near copies are asked about through the query guard.
        picture_copies: Near copies of each.
        few_predictions: Predictions a surrogate is trained on.
        predictions: The same, with patience.
        calls: Calls in each sample of the timing test.
        gate_images: Images of the gate curve.
    """

    images: int
    slow_images: int
    own_images: int
    few_images: int
    pairs: int
    batch: int
    few_steps: int
    steps: int
    search_steps: int
    search_batch: int
    restarts: int
    guesses: int
    climb_steps: int
    climb_images: int
    other_classes: int
    toolkit_images: int
    whole_toolkits: int
    accurate_steps: int
    copies: int
    masks: int
    copied_images: int
    picture_copies: int
    few_predictions: int
    predictions: int
    calls: int
    gate_images: int

    def as_dict(self) -> dict[str, Any]:
        """Return what a JSON file keeps."""
        return asdict(self)


_COLUMNS: Final = ("quick", "standard", "full")
_TABLE: Final = {
    "images": (128, 256, 1000),
    "slow_images": (24, 48, 200),
    "own_images": (1000, 10_000, 10_000),
    "few_images": (250, 2500, 2500),
    "pairs": (64, 256, 1000),
    "batch": (32, 64, 64),
    "few_steps": (20, 150, 600),
    "steps": (40, 300, 2000),
    "search_steps": (15, 120, 300),
    "search_batch": (16, 32, 64),
    "restarts": (1, 1, 4),
    "guesses": (60, 1000, 1000),
    "climb_steps": (20, 150, 1000),
    "climb_images": (4, 8, 32),
    "other_classes": (7, 15, 100),
    "toolkit_images": (12, 16, 100),
    "whole_toolkits": (0, 1, 1),
    "accurate_steps": (120, 2000, 8000),
    "copies": (8, 16, 64),
    "masks": (100, 300, 1000),
    "copied_images": (6, 16, 48),
    "picture_copies": (49, 49, 100),
    "few_predictions": (250, 1000, 1000),
    "predictions": (1000, 10_000, 10_000),
    "calls": (200, 1000, 5000),
    "gate_images": (32, 64, 256),
}

SUITES: Final[dict[str, Budget]] = {
    name: Budget(**{row: values[place] for row, values in _TABLE.items()}) for place, name in enumerate(_COLUMNS)
}
"""The budget of every suite."""


def budget_of(suite: str) -> Budget:
    """Return the budget of a suite.

    Raises:
        UnknownNameError: There is no such suite.
    """
    if suite not in SUITES:
        raise UnknownNameError("suite", suite, SUITES)
    return SUITES[suite]
