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
from numpy.typing import DTypeLike, NDArray

from keylock_server.guard.description import GRID, KEPT, PLACES

__all__ = ["COUNTERS", "Match", "Memory"]

_WAYS = 8
_COMMON = 4
_SLOT_SHARE = 0.9
_GROUP_BYTES = 8 + 8 + 8 + 2 * 4
_DIGEST = np.dtype([("digest", np.uint64), ("since", np.float64)])
_DIGEST_WAYS = 4
COUNTERS = ("serial", "seen", "near_copies", "identical", "refused")
_PAGE = 4096
_LINE_BYTES = 64
_SERIAL_BITS, _CODE_BITS, _PLACE_BITS = 32, 24, 8
_LARGEST_SERIAL = 2**_SERIAL_BITS - 1
_KEPT_ROWS = np.flatnonzero(KEPT)
_KEPT_SIDE = (GRID + 1) // 2
_KEPT_PLACES = PLACES[KEPT] // 2
_KEPT_CODES = (_KEPT_PLACES @ np.array([_KEPT_SIDE, 1])).astype(np.uint64)
_REACH = 2 * GRID
# Fewer regions are enough where they are spread over more than a quarter of the picture: a logo is not.
_SPREAD = 2
_MANY = 4
_REGION = 4
_REGIONS = 8

_Place = int | tuple[int, int] | tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class Match:
    """A group that a picture has blocks in common with.

    Attributes:
        serial: Number of the group.
        score: In how many of 64 regions, at one and the same offset; blocks that several groups have count less.
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
        groups = int(rest * (1 - _SLOT_SHARE) * 0.5) // _GROUP_BYTES
        digests = int(rest * (1 - _SLOT_SHARE) * 0.4) // (_DIGEST.itemsize * _DIGEST_WAYS)
        self._taken = 0
        self.counters = self._table(np.int64, (len(COUNTERS),))
        self._slots = self._table(np.uint64, (buckets, _WAYS))
        self._serials = self._table(np.uint64, (groups,))
        self._since = self._table(np.float64, (groups,))
        # When a group with near copies began: slots of such a group are kept longer.
        self._wanted = self._table(np.float64, (groups,))
        self._wanted[:] = -np.inf
        self._counts = self._table(np.uint32, (groups, 2))
        self._digests = self._table(_DIGEST, (digests, _DIGEST_WAYS))
        self._undo: list[tuple[NDArray[Any], _Place, NDArray[Any]]] = []
        self._thread_lock = threading.Lock()
        # A file without a name: POSIX locks on it belong to a process, and forked processes inherit the descriptor.
        self._file = os.memfd_create("keylock-guard")

    def _table(self, kind: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        """Returns the next part of the memory as a table."""
        start, size = self._taken, int(np.prod(shape)) * np.dtype(kind).itemsize
        self._taken += -(-size // _LINE_BYTES) * _LINE_BYTES
        return np.frombuffer(self._shared, kind, int(np.prod(shape)), start).reshape(shape)

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
        return int(((self._serials > 0) & _within(self._since, now, window_s)).sum())

    def add_group(self, now: float, window_s: float) -> int:
        """Begins a group.

        Returns:
            Its serial number. A group whose near copies were asked for is not pushed out by others, as far as there are
            others.
        """
        serial = int(self.counters[0])
        for _ in range(_WAYS):
            serial = serial % _LARGEST_SERIAL + 1
            place = serial % len(self._serials)
            if not _within(self._wanted[place], now, window_s):
                break
        self._write(self.counters, 0, serial)
        self._write(self._serials, place, serial)
        self._write(self._since, place, now)
        self._write(self._wanted, place, -np.inf)
        self._write(self._counts, place, 0)
        return serial

    def charge(self, serial: int, *, labels_only: bool) -> None:
        """Counts a near copy that is answered."""
        place = serial % len(self._serials)
        self._write(self._wanted, place, self._since[place])
        self._write(self._counts, (place, int(labels_only)), self._counts[place, int(labels_only)] + 1)

    def _places_of(self, slots: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Returns where the groups of slots stand."""
        return (_serials_of(slots) % np.uint64(len(self._serials))).astype(np.intp)

    def _buckets_of(self, codes: NDArray[np.uint64]) -> NDArray[np.intp]:
        return ((codes >> np.uint64(_CODE_BITS)) % np.uint64(len(self._slots))).astype(np.intp)

    def find(
        self, codes: NDArray[np.uint64], telling: NDArray[np.bool_], *, least: float, now: float, window_s: float
    ) -> list[Match]:
        """Returns the groups that a picture has enough blocks in common with, the best first.

        Args:
            codes: Of all its blocks (blocks,).
            telling: Which of them count (blocks,).
            least: How many regions are enough.
            now: Seconds of the clock.
            window_s: How long a group is remembered.
        """
        rows = np.flatnonzero(telling)
        slots = self._slots[self._buckets_of(codes[rows])]
        same = (slots >> np.uint64(_PLACE_BITS)) & np.uint64(2**_CODE_BITS - 1) == (
            codes[rows] & np.uint64(2**_CODE_BITS - 1)
        )[:, None]
        # What many pictures have says little, and takes the time.
        same &= same.sum(axis=1, keepdims=True) <= _COMMON
        row, way = np.divmod(np.flatnonzero(same), _WAYS)
        if not len(row):
            return []
        hits = slots[row, way]
        serials, places = _serials_of(hits), self._places_of(hits)
        alive = (self._serials[places] == serials) & _within(self._since[places], now, window_s)
        row, hits, serials = row[alive], hits[alive], serials[alive]
        # A block counts less the more groups have it.
        weights = 1 / np.bincount(row, minlength=len(rows))[row]
        kept = np.stack(np.divmod((hits & np.uint64(2**_PLACE_BITS - 1)).astype(np.int64), _KEPT_SIDE), 1) * 2
        offsets = (PLACES[rows[row]] - kept + _REACH // 2) @ np.array([_REACH, 1])
        # Neighbouring blocks have pixels in common and a logo has many: each region of the picture counts once at most.
        regions = (kept // _REGION) @ np.array([_REGIONS, 1])
        keys, which = np.unique(
            (serials.astype(np.int64) * _REACH**2 + offsets) * _REGIONS**2 + regions, return_inverse=True
        )
        shares = np.minimum(np.bincount(which, weights), 1)
        quarters = (keys % _REGIONS**2) // (_REGIONS**2 // 2) * 2 + (keys % _REGIONS) // (_REGIONS // 2)
        keys, where = np.unique(keys // _REGIONS**2, return_inverse=True)
        sums = np.bincount(where, shares)
        spread = sum((np.bincount(where, shares * (quarters == quarter)) >= 1).astype(int) for quarter in range(4))
        enough = np.flatnonzero((sums >= least) & ((spread >= _SPREAD) | (sums >= _MANY * least)))
        found: dict[int, Match] = {}
        for place in enough[np.argsort(-sums[enough])]:
            serial = int(keys[place] // _REACH**2)
            if serial not in found:
                at = serial % len(self._serials)
                scores, labels = self._counts[at].tolist()
                found[serial] = Match(serial, float(sums[place]), scores, labels, float(self._since[at]))
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
        wanted = _within(self._wanted[self._places_of(slots)], now, window_s)
        worth = _serials_of(slots) + wanted * np.uint64(2**_SERIAL_BITS)
        place = (buckets[~known], worth[~known].argmin(axis=1))
        self._write(self._slots, place, written[~known])

    def answered(self, digest: int, now: float, window_s: float) -> bool:
        """Tells whether a digest was noted within the window."""
        row = self._digests[digest % len(self._digests)]
        return bool((_within(row["since"], now, window_s) & (row["digest"] == digest)).any())

    def note(self, digest: int, now: float) -> None:
        """Notes a digest, in the place of the oldest of its bucket."""
        bucket = digest % len(self._digests)
        row = self._digests[bucket]
        same = np.flatnonzero(row["digest"] == digest)
        way = int(same[0]) if len(same) else int(row["since"].argmin())
        self._write(self._digests, (bucket, way), (digest, now))


def _serials_of(slots: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return slots >> np.uint64(_CODE_BITS + _PLACE_BITS)


def _within(since: NDArray[np.float64], now: float, window_s: float) -> NDArray[np.bool_]:
    """Tells which times are not in the future and not a window ago."""
    return (since <= now) & (now < since + window_s)
