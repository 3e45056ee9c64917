"""The memory of the guard: a fixed number of bytes that all workers of a server share. No picture is in it.

It has three tables. *Slots* hold codes of blocks, in buckets of eight; where a bucket is full, the oldest gives way.
*Groups* are pictures with their near copies: when they were first seen, and how many near copies were answered.
*Digests* say which pictures were answered, so that identical requests can be told from near copies.

Memory and lock are made before workers are forked. The lock is the kernel's and ends with the process that holds it;
what that process had half written is a code or a count too few, and every number is checked when it is read.
"""

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keylock_server.guard.description import GRID, KEPT, PLACES

__all__ = ["COUNTERS", "Match", "Memory"]

_WAYS = 8
_SLOT_SHARE = 0.9
_GROUP = np.dtype([("serial", np.uint64), ("since", np.float64), ("scores", np.uint32), ("labels", np.uint32)])
_DIGEST = np.dtype([("digest", np.uint64), ("since", np.float64)])
_DIGEST_WAYS = 4
COUNTERS = ("serial", "seen", "near_copies", "identical", "refused")
_PAGE = 4096
_SERIAL_BITS, _CODE_BITS, _PLACE_BITS = 32, 24, 8
_LARGEST_SERIAL = 2**_SERIAL_BITS - 1
_KEPT_ROWS = np.flatnonzero(KEPT)
_KEPT_SIDE = (GRID + 1) // 2
_KEPT_PLACES = PLACES[KEPT] // 2
_KEPT_CODES = (_KEPT_PLACES @ np.array([_KEPT_SIDE, 1])).astype(np.uint64)
_REACH = 2 * GRID

_Place = int | tuple[int, int] | tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class Match:
    """A group that a picture has blocks in common with.

    Attributes:
        serial: Number of the group.
        score: How many blocks, at one and the same offset; blocks that several groups have count less.
        scores: How many near copies were answered with scores.
        labels: How many were answered with a label.
        since: When the group began, in seconds of the clock.
    """

    serial: int
    score: float
    scores: int
    labels: int
    since: float


class Memory:
    """Tables in anonymous shared memory, and the lock before them."""

    def __init__(self, size_bytes: int) -> None:
        """Takes the memory, all of it at once.

        Args:
            size_bytes: How much, at least 64 KiB.
        """
        self._shared = mmap.mmap(-1, size_bytes)
        self.size_bytes = size_bytes
        rest = size_bytes - _PAGE
        buckets = int(rest * _SLOT_SHARE) // (8 * _WAYS)
        groups = int(rest * (1 - _SLOT_SHARE) * 0.5) // _GROUP.itemsize
        digests = int(rest * (1 - _SLOT_SHARE) * 0.4) // (_DIGEST.itemsize * _DIGEST_WAYS)
        self.counters = self._table(np.dtype(np.int64), (len(COUNTERS),), 0)
        self._slots = self._table(np.dtype(np.uint64), (buckets, _WAYS), _PAGE)
        self._groups = self._table(_GROUP, (groups,), _PAGE + self._slots.nbytes)
        self._digests = self._table(_DIGEST, (digests, _DIGEST_WAYS), _PAGE + self._slots.nbytes + self._groups.nbytes)
        self._undo: list[tuple[NDArray[Any], _Place, NDArray[Any]]] = []
        self._thread_lock = threading.Lock()
        # A file without a name: POSIX locks on it belong to a process, and forked processes inherit the descriptor.
        self._file = os.memfd_create("keylock-guard")

    def _table(self, kind: np.dtype[Any], shape: tuple[int, ...], offset: int) -> NDArray[Any]:
        return np.frombuffer(self._shared, kind, int(np.prod(shape)), offset).reshape(shape)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the memory alone among all workers and threads; what failed inside is undone."""
        with self._thread_lock:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                self._undo.clear()
                yield
            except BaseException:
                self.undo()
                raise
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def undo(self) -> None:
        """Takes back what was written since the lock was taken, counters aside."""
        for table, place, before in reversed(self._undo):
            table[place] = before
        self._undo.clear()

    def _write(self, table: NDArray[Any], place: _Place, value: object) -> None:
        self._undo.append((table, place, table[place].copy()))
        table[place] = value

    def count(self, **counts: int) -> None:
        """Adds to counters."""
        for name, value in counts.items():
            self.counters[COUNTERS.index(name)] += value

    def group_count(self, now: float, window_s: float) -> int:
        """Counts the groups that are remembered."""
        return int(self._alive(self._groups, now, window_s).sum())

    def add_group(self, now: float, window_s: float) -> int:
        """Begins a group.

        Returns:
            Its serial number. A group whose near copies were asked for is not pushed out by others, as far as there are
            others.
        """
        serial = int(self.counters[0])
        for _ in range(_WAYS):
            serial = serial % _LARGEST_SERIAL + 1
            old = self._groups[serial % len(self._groups)]
            if not (self._alive(old, now, window_s) and old["scores"] + old["labels"]):
                break
        self._write(self.counters, 0, serial)
        self._write(self._groups, serial % len(self._groups), (serial, now, 0, 0))
        return serial

    def charge(self, serial: int, *, labels_only: bool) -> None:
        """Counts a near copy that is answered."""
        place = serial % len(self._groups)
        changed = self._groups[place].copy()
        changed["labels" if labels_only else "scores"] += 1
        self._write(self._groups, place, changed)

    @staticmethod
    def _alive(groups: NDArray[Any], now: float, window_s: float) -> NDArray[np.bool_]:
        return (groups["serial"] > 0) & (groups["since"] <= now) & (now < groups["since"] + window_s)

    def _groups_of(
        self, slots: NDArray[np.uint64], now: float, window_s: float
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Returns the groups of slots, and which of them are still what the slot means."""
        serials = slots >> np.uint64(_CODE_BITS + _PLACE_BITS)
        groups = self._groups[(serials % np.uint64(len(self._groups))).astype(np.intp)]
        return groups, (groups["serial"] == serials) & self._alive(groups, now, window_s)

    def _buckets_of(self, codes: NDArray[np.uint64]) -> NDArray[np.intp]:
        return ((codes >> np.uint64(_CODE_BITS)) % np.uint64(len(self._slots))).astype(np.intp)

    def find(
        self, codes: NDArray[np.uint64], telling: NDArray[np.bool_], *, least: float, now: float, window_s: float
    ) -> list[Match]:
        """Returns the groups that a picture has enough blocks in common with, the best first.

        Args:
            codes: Of all its blocks (blocks,).
            telling: Which of them count (blocks,).
            least: How many blocks are enough.
            now: Seconds of the clock.
            window_s: How long a group is remembered.
        """
        rows = np.flatnonzero(telling)
        slots = self._slots[self._buckets_of(codes[rows])]
        same = (slots >> np.uint64(_PLACE_BITS)) & np.uint64(2**_CODE_BITS - 1) == (
            codes[rows] & np.uint64(2**_CODE_BITS - 1)
        )[:, None]
        # A block that fills its bucket is common, and says nothing.
        same &= ~same.all(axis=1, keepdims=True)
        row, way = np.divmod(np.flatnonzero(same), _WAYS)
        if len(row) < least:
            return []
        hits = slots[row, way]
        groups, alive = self._groups_of(hits, now, window_s)
        row, hits, groups = row[alive], hits[alive], groups[alive]
        # A block counts less the more groups have it; a bucket holds eight of them at most.
        weights = 1 / np.bincount(row, minlength=len(rows))[row]
        kept = np.stack(np.divmod((hits & np.uint64(2**_PLACE_BITS - 1)).astype(np.int64), _KEPT_SIDE), 1) * 2
        offsets = (PLACES[rows[row]] - kept + _REACH // 2) @ np.array([_REACH, 1])
        keys, which = np.unique(groups["serial"].astype(np.int64) * _REACH**2 + offsets, return_inverse=True)
        sums = np.bincount(which, weights)
        enough = np.flatnonzero(sums >= least)
        found: dict[int, Match] = {}
        for place in enough[np.argsort(-sums[enough])]:
            serial = int(keys[place] // _REACH**2)
            if serial not in found:
                group = self._groups[serial % len(self._groups)]
                counts = int(group["scores"]), int(group["labels"])
                found[serial] = Match(serial, float(sums[place]), *counts, float(group["since"]))
        return list(found.values())

    def remember(
        self, serial: int, codes: NDArray[np.uint64], telling: NDArray[np.bool_], *, now: float, window_s: float
    ) -> None:
        """Adds blocks of a picture to a group, those that it does not have yet."""
        chosen = telling[_KEPT_ROWS]
        codes, places = codes[_KEPT_ROWS][chosen], _KEPT_CODES[chosen]
        buckets = self._buckets_of(codes)
        written = (
            np.uint64(serial) << np.uint64(_CODE_BITS + _PLACE_BITS)
            | (codes & np.uint64(2**_CODE_BITS - 1)) << np.uint64(_PLACE_BITS)
            | places
        )
        slots = self._slots[buckets]
        known = (slots >> np.uint64(_PLACE_BITS) == (written >> np.uint64(_PLACE_BITS))[:, None]).any(axis=1)
        # Two blocks of a picture in one bucket would be written to the same slot: the last one stays.
        groups, alive = self._groups_of(slots, now, window_s)
        wanted = groups["scores"] + groups["labels"] > 0
        worth = np.where(alive, groups["serial"] + wanted * np.uint64(2**_SERIAL_BITS), np.uint64(0))
        place = (buckets[~known], worth[~known].argmin(axis=1))
        self._write(self._slots, place, written[~known])

    def answered(self, digest: int, now: float, window_s: float) -> bool:
        """Tells whether a digest was noted within the window."""
        row = self._digests[digest % len(self._digests)]
        fresh = (row["since"] <= now) & (now < row["since"] + window_s)
        return bool((fresh & (row["digest"] == digest)).any())

    def note(self, digest: int, now: float) -> None:
        """Notes a digest, in the place of the oldest of its bucket."""
        bucket = digest % len(self._digests)
        row = self._digests[bucket]
        same = np.flatnonzero(row["digest"] == digest)
        way = int(same[0]) if len(same) else int(row["since"].argmin())
        self._write(self._digests, (bucket, way), (digest, now))
