"""The guard itself: which pictures are near copies of recent ones, and whether they are answered.

Perturbation explainers and searches for a key send many near copies of one picture and compare the answers. Each
picture has, for a window of time, a small budget of near copies that are answered with scores, and another one of what
the labels of its near copies may tell. A near copy of a near copy belongs to the same picture, and one that has
something in common with several pictures is counted for each of them and refused when one of them is used up. An
identical picture is no near copy: it is answered, with what it was answered with before.

A label that is the one answered before tells little, and another one tells much. Which it is, is known only once it is
computed, and whether it is answered is decided before. So `admit` charges every near copy as if it told something
between, and `hear` corrects that. Nothing that a refused picture would be answered with has a part in its refusal.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from keylock.errors import InputError
from keylock_server.guard.description import Description, Secret, describe, digests
from keylock_server.guard.memory import COUNTERS, Match, Memory

__all__ = ["OTHER_UNITS", "SAME_UNITS", "UNHEARD_UNITS", "Admission", "Guard", "GuardLimits", "GuardStatus", "Mode"]

SAME_UNITS = 1
"""What a near copy is charged whose label is the one that was answered last for its picture."""

OTHER_UNITS = 30
"""What one is charged whose label is another."""

UNHEARD_UNITS = 7
"""What one is charged until its label is known, and for good where that is never told."""

_QUARTERS = 4
_LEAST_BYTES = 64 * 1024
_LABEL = 1 << 63
"""Sets digests of pictures that were answered with a label alone apart from those answered with scores."""


class Mode(StrEnum):
    """What is done with near copies beyond a budget: counted, or refused."""

    COUNT = "count"
    LIMIT = "limit"


@dataclass(frozen=True, kw_only=True)
class GuardLimits:
    """What a guard allows.

    Attributes:
        window_s: How long a picture is remembered, and its budget counts, in seconds.
        scores: Near copies of a picture that are answered with scores.
        labels: How much the near copies of a picture may tell by their labels, those with scores included: one with
            the label of the one before counts `SAME_UNITS`, one with another `OTHER_UNITS`.
        memory_bytes: Size of the memory that all workers share; when it is full, the oldest pictures are forgotten.
        least_regions: In how many of 64 regions two pictures must agree; what several have in common counts less.
        sure_regions: In how many they agree who surely are near copies. Others count a quarter of an answer with
            scores, and their blocks are not remembered with those of the picture: chains of them would grow.
    """

    window_s: float = 3600.0
    scores: int = 2
    labels: int = 36
    memory_bytes: int = 48 * 2**20
    least_regions: float = 5.0
    sure_regions: float = 12.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.window_s) and self.window_s > 0):
            raise InputError("the window of the query guard takes seconds above 0")
        if self.scores < 0 or self.labels < 0:
            raise InputError("the budgets of the query guard cannot be negative: give 0 or more")
        if self.memory_bytes < _LEAST_BYTES:
            raise InputError(f"the memory of the query guard takes at least {_LEAST_BYTES:,} bytes")
        if not self.least_regions > 0:
            raise InputError("the query guard takes a number of regions above 0")


@dataclass(frozen=True)
class Admission:
    """Whether a batch is answered.

    Attributes:
        admitted: All of its pictures are, and are counted; otherwise none is.
        row: The first picture whose budget is used up; None where none is.
        retry_after_s: When that picture's window ends, in seconds from now; 0 where all budgets are kept.
        labels_left: Whether the batch would be answered if labels alone were asked for.
        near_copies: How many of its pictures are near copies; 0 where the batch is beyond a budget.
        identical: How many of them were answered before; 0 where the batch is beyond a budget.
        charged: Numbers of the pictures that each is charged to as a near copy, for `Guard.hear` to correct; empty
            where nothing was counted.
        begun: The number that each has as a picture of its own; 0 where it has none.
    """

    admitted: bool
    row: int | None = None
    retry_after_s: float = 0.0
    labels_left: bool = True
    near_copies: int = 0
    identical: int = 0
    charged: tuple[tuple[int, ...], ...] = ()
    begun: tuple[int, ...] = ()

    @property
    def beyond(self) -> bool:
        """Whether a budget is used up: such a batch is refused, or with `COUNT` answered and nothing else."""
        return self.row is not None


@dataclass(frozen=True)
class GuardStatus:
    """What a guard has counted since it was made, and what it remembers.

    Attributes:
        seen: Pictures asked about, refused ones too.
        near_copies: How many of these were near copies, within the budgets.
        identical: How many had been answered before.
        refused: How many were refused, or with `COUNT` would have been: of a batch, all.
        entries: Pictures remembered, each with its near copies.
        memory_bytes: Size of the memory.
    """

    seen: int
    near_copies: int
    identical: int
    refused: int
    entries: int
    memory_bytes: int


class Guard:
    """Counts near copies. To be made before workers are forked, which then share what it knows."""

    def __init__(
        self, limits: GuardLimits, clock: Callable[[], float], generator: np.random.Generator | None = None
    ) -> None:
        """Takes its memory.

        Args:
            limits: What it allows.
            clock: Seconds that only grow, the same in all processes of the machine, such as `time.monotonic`.
            generator: Draws the secret; by default one seeded by the operating system.
        """
        self.limits = limits
        self._clock = clock
        self._secret = Secret.draw(np.random.default_rng() if generator is None else generator)
        self._memory = Memory(limits.memory_bytes)

    def admit(
        self,
        pixels: NDArray[np.uint8] | NDArray[np.float32],
        *,
        labels_only: bool,
        mode: Mode = Mode.LIMIT,
        scale: NDArray[np.float32] | None = None,
        shift: NDArray[np.float32] | None = None,
    ) -> Admission:
        """Counts a batch, if its pictures may be answered. Near copies within the batch count too.

        Args:
            pixels: uint8 in 0 to 255 or float32 in 0 to 1, (n, height, width, channels), in any order in memory.
            labels_only: Whether only labels are asked for; anything else counts as scores.
            mode: With `COUNT` everything is admitted; what `LIMIT` would refuse is told apart and, as it would be, not
                remembered.
            scale: What float32 pixels in another range are multiplied by to come to 0 to 1, and
            shift: what is added then, for each channel (channels,).

        Raises:
            InputError: The pixels have another shape.
        """
        if pixels.ndim != 4 or 0 in pixels.shape[1:]:
            raise InputError(f"the query guard takes pixels (n, height, width, channels) and got {pixels.shape}")
        described = describe(pixels, self._secret, scale=scale, shift=shift)
        keys = digests(pixels, self._secret)
        with self._memory.locked():
            now = self._clock()
            result = self._admit(described, keys, labels_only, now)
            if result.beyond:
                self._memory.undo()
                left = not labels_only and not self._admit(described, keys, True, now).beyond
                self._memory.undo()
                result = replace(result, labels_left=left, admitted=mode is Mode.COUNT)
            self._memory.count(
                seen=len(pixels),
                near_copies=result.near_copies,
                identical=result.identical,
                refused=len(pixels) if result.beyond else 0,
            )
        return result

    def _admit(self, described: list[Description], keys: list[int], labels_only: bool, now: float) -> Admission:
        """Counts one picture after the other, each compared with those before it, up to the first beyond a budget."""
        memory, limits = self._memory, self.limits
        charged: list[tuple[int, ...]] = []
        begun: list[int] = []
        identical = 0
        for row, (picture, key) in enumerate(zip(described, keys, strict=True)):
            # What was answered with scores may be answered with a label, and not the other way round.
            if memory.answered(key, now, limits.window_s) or (
                labels_only and memory.answered(key ^ _LABEL, now, limits.window_s)
            ):
                charged.append(())
                begun.append(0)
                identical += 1
                continue
            matches = memory.find(picture, least=limits.least_regions, now=now, window_s=limits.window_s)
            spent = [match.since for match in matches if self._is_spent(match, labels_only)]
            if spent:
                return Admission(False, row, max(spent) + limits.window_s - now, False)
            for match in matches:
                quarters = 0 if labels_only else self._quarters_of(match)
                memory.charge(match.serial, quarters=quarters, units=UNHEARD_UNITS)
            sure = bool(matches) and matches[0].score >= limits.sure_regions
            serial = 0
            if not sure:
                serial = memory.add_group(now, limits.window_s)
                memory.remember(serial, picture, now=now, window_s=limits.window_s)
            elif memory.may_join(matches[0].serial):
                memory.remember(matches[0].serial, picture, now=now, window_s=limits.window_s)
            charged.append(tuple(match.serial for match in matches))
            begun.append(serial)
            memory.note(key ^ _LABEL if labels_only else key, now)
        return Admission(
            True,
            near_copies=sum(map(bool, charged)),
            identical=identical,
            charged=tuple(charged),
            begun=tuple(begun),
        )

    def _is_spent(self, match: Match, labels_only: bool) -> bool:
        if match.units + UNHEARD_UNITS > self.limits.labels:
            return True
        return not labels_only and match.quarters + self._quarters_of(match) > _QUARTERS * self.limits.scores

    def _quarters_of(self, match: Match) -> int:
        """Returns what a near copy takes of the budget of scores, in quarters of an answer."""
        return _QUARTERS if match.score >= self.limits.sure_regions else 1

    def hear(self, admission: Admission, labels: NDArray[np.integer]) -> None:
        """Corrects what a batch was charged, by what it is answered. To be called before the answer leaves.

        Args:
            admission: What `admit` returned for it, each of which is heard of once. One that counted nothing does
                nothing here.
            labels: Index of the most probable class of each picture (n,).

        Raises:
            InputError: There is another number of labels than of pictures.
        """
        if not admission.charged:
            return
        if len(labels) != len(admission.charged):
            raise InputError(f"the query guard was asked about {len(admission.charged)} pictures: tell as many labels")
        memory = self._memory
        with memory.locked():
            for charged, begun, label in zip(admission.charged, admission.begun, labels.tolist(), strict=True):
                for serial in charged:
                    before = memory.exchange_label(serial, label)
                    # What was forgotten meanwhile cannot be charged.
                    if before is not None:
                        units = SAME_UNITS if label == before else OTHER_UNITS
                        memory.charge(serial, quarters=0, units=units - UNHEARD_UNITS)
                if begun:
                    memory.exchange_label(begun, label)

    def status(self) -> GuardStatus:
        """Returns what was counted so far, by all workers."""
        with self._memory.locked():
            counts = dict(zip(COUNTERS, self._memory.counters.tolist(), strict=True))
            entries = self._memory.group_count(self._clock(), self.limits.window_s)
        del counts["serial"]
        return GuardStatus(**counts, entries=entries, memory_bytes=self._memory.size_bytes)
