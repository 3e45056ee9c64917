"""The guard itself: which pictures are near copies of recent ones, and whether they are answered.

Perturbation explainers and searches for a key send many near copies of one picture and compare the scores. Each picture
has, for a window of time, a small budget of near copies that are answered with scores, and a larger one of those that
are answered with a label alone. A near copy of a near copy belongs to the same picture, and one that has something in
common with several pictures is counted for each of them and refused when one of them is used up. An identical picture
is no near copy: it is answered, with what it was answered with before.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from keylock.errors import InputError
from keylock_server.guard.description import Description, Multipliers, describe, digests
from keylock_server.guard.memory import COUNTERS, Match, Memory

__all__ = ["Admission", "Guard", "GuardLimits", "GuardStatus", "Mode"]

_LEAST_BYTES = 64 * 1024
_LABEL = 1 << 63
"""Sets digests of pictures that were answered with a label alone apart from those answered with scores."""


class Mode(StrEnum):
    """What is done with near copies: counted, or refused beyond a budget."""

    COUNT = "count"
    LIMIT = "limit"


@dataclass(frozen=True, kw_only=True)
class GuardLimits:
    """What a guard allows.

    Attributes:
        window_s: How long a picture is remembered, and its budget counts, in seconds.
        scores: Near copies of a picture that are answered with scores.
        labels: Near copies of a picture that are answered with a label alone.
        memory_bytes: Size of the memory that all workers share; when it is full, the oldest pictures are forgotten.
        least_regions: In how many of 64 regions two pictures must agree; what several have in common counts less.
    """

    window_s: float = 3600.0
    scores: int = 4
    labels: int = 12
    memory_bytes: int = 48 * 2**20
    least_regions: float = 5.0

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
        row: The first picture whose budget is used up; None where all are answered.
        retry_after_s: When that picture's window ends, in seconds from now; 0 where all are answered.
        labels_left: Whether the batch would be answered if labels alone were asked for.
        near_copies: How many of its pictures are near copies.
        identical: How many of them were answered before; 0 where the batch is not.
    """

    admitted: bool
    row: int | None = None
    retry_after_s: float = 0.0
    labels_left: bool = True
    near_copies: int = 0
    identical: int = 0


@dataclass(frozen=True)
class GuardStatus:
    """What a guard has counted since it was made, and what it remembers.

    Attributes:
        seen: Pictures asked about, refused ones too.
        near_copies: How many of these were near copies.
        identical: How many had been answered before.
        refused: How many were refused: of a batch, all.
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
        self._secret = Multipliers.draw(np.random.default_rng() if generator is None else generator)
        self._memory = Memory(limits.memory_bytes)

    def admit(
        self,
        pixels: NDArray[np.uint8] | NDArray[np.float32],
        *,
        labels_only: bool,
        mode: Mode = Mode.LIMIT,
    ) -> Admission:
        """Counts a batch, if its pictures may be answered. Near copies within the batch count too.

        Args:
            pixels: uint8 in 0 to 255 or float32 in 0 to 1, (n, height, width, channels).
            labels_only: Whether only labels are asked for; anything else counts as scores.
            mode: With `COUNT` everything is admitted.

        Raises:
            InputError: The pixels have another shape.
        """
        if pixels.ndim != 4 or 0 in pixels.shape[1:]:
            raise InputError(f"the query guard takes pixels (n, height, width, channels) and got {pixels.shape}")
        described, keys = describe(pixels, self._secret), digests(pixels, self._secret)
        with self._memory.locked():
            now = self._clock()
            result = self._admit(described, keys, labels_only, mode, now)
            if not result.admitted:
                self._memory.undo()
                left = not labels_only and self._admit(described, keys, True, mode, now).admitted
                self._memory.undo()
                result = replace(result, labels_left=left)
            self._memory.count(
                seen=len(pixels),
                near_copies=result.near_copies if result.admitted else 0,
                identical=result.identical,
                refused=0 if result.admitted else len(pixels),
            )
        return result

    def _admit(
        self, described: Description, keys: NDArray[np.uint64], labels_only: bool, mode: Mode, now: float
    ) -> Admission:
        """Counts one picture after the other, each compared with those before it, up to the first refusal."""
        memory, limits = self._memory, self.limits
        near_copies = identical = 0
        for row, key in enumerate(keys.tolist()):
            # What was answered with scores may be answered with a label, and not the other way round.
            if memory.answered(key, now, limits.window_s) or (
                labels_only and memory.answered(key ^ _LABEL, now, limits.window_s)
            ):
                identical += 1
                continue
            codes, telling = described.codes[row], described.telling[row]
            matches = memory.find(codes, telling, least=limits.least_regions, now=now, window_s=limits.window_s)
            near_copies += bool(matches)
            spent = [match.since for match in matches if self._is_spent(match, labels_only)]
            if spent and mode is Mode.LIMIT:
                return Admission(False, row, max(spent) + limits.window_s - now, False, near_copies)
            for match in matches:
                memory.charge(match.serial, labels_only=labels_only)
            most_used = max(matches, key=lambda match: (match.scores + match.labels, match.score), default=None)
            group = memory.add_group(now, limits.window_s) if most_used is None else most_used.serial
            memory.remember(group, codes, telling, now=now, window_s=limits.window_s)
            memory.note(key ^ _LABEL if labels_only else key, now)
        return Admission(True, near_copies=near_copies, identical=identical)

    def _is_spent(self, match: Match, labels_only: bool) -> bool:
        if labels_only:
            return match.scores + match.labels >= self.limits.labels
        return match.scores >= self.limits.scores

    def status(self) -> GuardStatus:
        """Returns what was counted so far, by all workers."""
        with self._memory.locked():
            counts = dict(zip(COUNTERS, self._memory.counters.tolist(), strict=True))
            entries = self._memory.group_count(self._clock(), self.limits.window_s)
        del counts["serial"]
        return GuardStatus(**counts, entries=entries, memory_bytes=self._memory.size_bytes)
