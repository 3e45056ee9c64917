"""The contract of an attack, and the registry of all attacks.

An attack is a function. What it may know is in the view it gets (`keylock.audit.views`); what it may spend is in its
budget; what it found is an `Outcome`, which the auditor, who alone knows the truth, judges.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from keylock.audit.budgets import Budget
from keylock.errors import InputError, UnknownNameError
from keylock.explainers import Explainer
from keylock.training import Progress

__all__ = [
    "ALL_SUITES",
    "ATTACKS",
    "LONG_SUITES",
    "Attack",
    "Check",
    "Cost",
    "Goal",
    "Knowledge",
    "NotApplicableError",
    "Outcome",
    "Snapshot",
    "Steps",
    "attack",
    "attacks_of",
]


class Knowledge(StrEnum):
    """What the attacker has: public calls; the public bundle too; pairs of images and true maps too."""

    T0 = "T0"
    T1 = "T1"
    T2 = "T2"


class Goal(StrEnum):
    """What the attacker wants: true maps; to know whether maps are locked; a hole in the running service."""

    RECOVER = "recover"
    DETECT = "detect"
    SERVICE = "service"


class NotApplicableError(Exception):
    """An attack does not apply to this lock, or needs what was not given. It ends the attack and never leaves an audit.

    Attributes:
        message: Which of the two, in a sentence.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an attack took.

    Attributes:
        queries: Images answered by the oracle, predictions and maps.
        images: Images of the attacker's own that were used.
        labelled: How many of these with their labels.
        pairs: Pairs of an image and its true map.
        steps: Gradient steps.
        batch: Images in such a step.
        seconds: Wall-clock time; filled in by the auditor.
    """

    queries: int = 0
    images: int = 0
    labelled: int = 0
    pairs: int = 0
    steps: int = 0
    batch: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return what a JSON file keeps."""
        return asdict(self)


@dataclass(frozen=True)
class Snapshot:
    """Maps on the way, for the curve of queries against leakage.

    Attributes:
        queries: Images answered so far.
        maps: As in the outcome.
    """

    queries: int
    maps: Mapping[str, Tensor]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at in the running service.

    Attributes:
        name: What.
        good: Whether it is as it must be; None where nothing is promised and the value is for the record.
        value: What was found, in a few words.
    """

    name: str
    good: bool | None
    value: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What an attack found.

    Attributes:
        maps: Recovered maps of the view's images (count, h, w) by label. The label of a locked explainer says that it
            is this explainer's map that is meant; any other is held against the maps of all locked explainers.
        methods: For labels of explainers that are not locked: the explainer, so that the auditor can compare with what
            it shows on the reference model too.
        cost: What it took.
        predictions: The attacked model's classes of the view's images (count,); None where no model was changed.
        scores: Of an attack that detects, one number for each image or weight: the larger, the more it looks locked.
        snapshots: Maps on the way.
        checks: Of an attack on the service.
        notes: Numbers and words worth keeping.
    """

    maps: Mapping[str, Tensor] = field(default_factory=dict)
    methods: Mapping[str, Explainer] = field(default_factory=dict)
    cost: Cost = Cost()
    predictions: Tensor | None = None
    scores: Tensor | None = None
    snapshots: tuple[Snapshot, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: Mapping[str, float | int | str] = field(default_factory=dict)


class Steps:
    """Counts the steps of an attack for whoever watches: `for step in steps(100): ...`."""

    def __init__(self, name: str, progress: Progress) -> None:
        self._name, self._progress = name, progress

    def __call__(self, count: int) -> Iterator[int]:
        """Yield 0 to `count` - 1, telling the progress of each."""
        self._progress.start(self._name, count, 0)
        try:
            for step in range(count):
                yield step
                self._progress.advance({})
        finally:
            self._progress.finish()


Run = Callable[[Any, Budget, torch.Generator, Steps], Outcome]
"""Takes the view that fits the knowledge and goal, what may be spent, a generator on the CPU, and counts its steps."""


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        name: `family` or `family/variant`.
        knowledge: What the attacker has.
        goal: What the attacker wants.
        suites: In which suites it runs.
        summary: What is done, in one sentence.
        run: Does it.
    """

    name: str
    knowledge: Knowledge
    goal: Goal
    suites: tuple[str, ...]
    summary: str
    run: Run

    @property
    def group(self) -> str:
        """Where the report lists it: T0, T1, T2, detection or service."""
        return {Goal.RECOVER: self.knowledge.value, Goal.DETECT: "detection", Goal.SERVICE: "service"}[self.goal]


ATTACKS: dict[str, Attack] = {}
"""Every attack by name, in the order of their modules."""

ALL_SUITES = ("quick", "standard", "full")
LONG_SUITES = ("standard", "full")
"""For attacks that take long, or that differ from one in `quick` by a setting alone."""


def attack(
    name: str,
    knowledge: Knowledge,
    summary: str,
    *,
    goal: Goal = Goal.RECOVER,
    suites: tuple[str, ...] = ALL_SUITES,
) -> Callable[[Run], Run]:
    """Register a function as an attack.

    Raises:
        InputError: The name is taken.
    """

    def register(run: Run) -> Run:
        if name in ATTACKS:
            raise InputError(f"there is an attack {name!r} already: choose another name")
        ATTACKS[name] = Attack(name, knowledge, goal, suites, summary, run)
        return run

    return register


def attacks_of(suite: str, *, only: tuple[str, ...] = ()) -> tuple[Attack, ...]:
    """Return the attacks of a suite, or those of some names or families.

    Args:
        suite: A name in `SUITES`.
        only: Names of attacks, or of families, which stand for all of their variants; in any suite.

    Raises:
        UnknownNameError: A name is that of no attack.
    """
    families = {name.partition("/")[0] for name in ATTACKS}
    for name in only:
        if name not in ATTACKS and name not in families:
            raise UnknownNameError("attack", name, {*ATTACKS, *families})
    if only:
        return tuple(one for one in ATTACKS.values() if {one.name, one.name.partition("/")[0]} & set(only))
    return tuple(one for one in ATTACKS.values() if suite in one.suites)
