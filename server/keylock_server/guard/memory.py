"""The memory of the guard: a fixed number of bytes that all workers of a server share. No picture is in it.

It has three tables. *Slots* hold codes of blocks, in buckets of eight; where a bucket is full, the oldest gives way.
*Groups* are pictures with their near copies: when they were first seen, the label answered last, and how much was.
*Digests* say which pictures were answered, so that identical requests can be told from near copies.

Memory and lock are made before workers are forked. The lock is the kernel's and ends with the process that holds it;
what that process had half written is a code or a count too few, and every number is checked when it is read.
"""

import fcntl
import math
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from keylock_server.guard.description import CELLS, Description

__all__ = ["COUNTERS", "Match", "Memory"]

_WAYS = 8
_COMMON = 7
_MOST_JOINED = 2
_SLOT_SHARE = 0.9
_GROUP = np.dtype(
    [
        ("serial", np.uint32),
        ("label", np.int32),
        ("quarters", np.int32),
        ("units", np.int32),
        ("joined", np.int32),
        ("since", np.float64),
    ]
)
_DIGEST = np.dtype([("digest", np.uint64), ("since", np.float64)])
_DIGEST_WAYS = 4
COUNTERS = ("serial", "seen", "near_copies", "identical", "refused")
_PAGE = 4096
_LINE_BYTES = 64
_LARGEST_SERIAL = 2**32 - 1
_CODE_BITS, _PLACE_BITS = 22, 10
_REACH = 2 * CELLS
# Fewer regions are enough where they are spread over more than a quarter of the picture: a logo is not.
_SPREAD = 2
_MANY = 4
_REGION = 4
_REGIONS = CELLS // _REGION

# Every second block down and across is remembered, and all are looked up.
_KEPT = np.add.outer(np.arange(CELLS) % 2, np.arange(CELLS) % 2).ravel() == 0
_WIDE = np.add.outer(np.arange(CELLS) * _REACH, np.arange(CELLS)).ravel()
_REGION_OF = np.add.outer(np.arange(CELLS) // _REGION * _REGIONS, np.arange(CELLS) // _REGION).ravel()

_Place = int | tuple[int, int] | NDArray[np.intp]


@dataclass(frozen=True)
class Match:
    """A group that a picture has blocks in common with.

    Attributes:
        serial: Number of the group.
        score: In how many of 64 regions, at one and the same offset; blocks that several groups have count less.
        quarters: How many near copies were answered with scores, in quarters of an answer.
        units: What was charged for near copies, whatever they were answered with.
        since: When the group began, in seconds of the clock.
    """

    serial: int
    score: float
    quarters: int
    units: int
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
        groups = int(rest * (1 - _SLOT_SHARE) * 0.5) // (_GROUP.itemsize + 8)
        digests = int(rest * (1 - _SLOT_SHARE) * 0.4) // (_DIGEST.itemsize * _DIGEST_WAYS)
        self._taken = 0
        self.counters = self._table(np.int64, (len(COUNTERS),))
        # Part of the code, and the place; and whose block it is.
        self._tags = self._table(np.uint32, (buckets, _WAYS))
        self._owners = self._table(np.uint32, (buckets, _WAYS))
        self._groups = self._table(_GROUP, (groups,))
        # When a group with near copies began: slots of such a group are kept longer.
        self._wanted = self._table(np.float64, (groups,))
        self._wanted[:] = -np.inf
        self._digests = self._table(_DIGEST, (digests, _DIGEST_WAYS))
        self._undo: list[tuple[NDArray[Any], _Place, Any]] = []
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
        before = table.take(place) if isinstance(place, np.ndarray) else table[place].copy()
        self._undo.append((table, place, before))
        table[place] = value

    def count(self, **counts: int) -> None:
        """Adds to counters."""
        for name, value in counts.items():
            if value:
                self.counters[COUNTERS.index(name)] += value

    def group_count(self, now: float, window_s: float) -> int:
        """Counts the groups that are remembered."""
        return int(((self._groups["serial"] > 0) & _within(self._groups["since"], now, window_s)).sum())

    def add_group(self, now: float, window_s: float) -> int:
        """Begins a group.

        Returns:
            Its serial number. A group whose near copies were asked for is not pushed out by others, as far as there are
            others.
        """
        serial = int(self.counters[0])
        for _ in range(_WAYS):
            serial = serial % _LARGEST_SERIAL + 1
            place = serial % len(self._groups)
            if not _within(self._wanted[place], now, window_s):
                break
        self._write(self.counters, 0, serial)
        self._write(self._groups, place, (serial, -1, 0, 0, 0, now))
        self._write(self._wanted, place, -np.inf)
        return serial

    def charge(self, serial: int, *, quarters: int, units: int) -> None:
        """Counts a near copy that is answered, or corrects what it was counted; never below 0."""
        place = serial % len(self._groups)
        group = self._groups[place].copy()
        group["quarters"] += quarters
        group["units"] = max(0, int(group["units"]) + units)
        self._write(self._groups, place, group)
        self._write(self._wanted, place, group["since"])

    def may_join(self, serial: int) -> bool:
        """Notes that a picture is about to join a group, unless as many as may have joined it."""
        group = self._groups[serial % len(self._groups)].copy()
        if group["joined"] >= _MOST_JOINED:
            return False
        group["joined"] += 1
        self._write(self._groups, serial % len(self._groups), group)
        return True

    def exchange_label(self, serial: int, label: int) -> int | None:
        """Notes a label that is answered for a group.

        Returns:
            The one that was answered before it, or the same if there was none; None for a group that is forgotten.
        """
        place = serial % len(self._groups)
        group = self._groups[place].copy()
        if group["serial"] != serial:
            return None
        before = int(group["label"])
        group["label"] = label
        self._write(self._groups, place, group)
        return label if before < 0 else before

    def _buckets_of(self, codes: NDArray[np.uint64]) -> NDArray[np.intp]:
        return ((codes >> np.uint64(_CODE_BITS)) % np.uint64(len(self._tags))).astype(np.intp)

    def find(self, picture: Description, *, least: float, now: float, window_s: float) -> list[Match]:
        """Returns the groups that a picture has enough blocks in common with, the best first.

        Args:
            picture: Its blocks.
            least: How many regions are enough.
            now: Seconds of the clock.
            window_s: How long a group is remembered.
        """
        buckets, tags = self._buckets_of(picture.codes), _tags_of(picture.codes)
        slots = self._tags.take(buckets, axis=0)
        slots ^= tags[:, None]
        same = slots < 2**_PLACE_BITS
        counts = _counted(same)
        # What many pictures have says little, and takes the time.
        row = np.flatnonzero(counts - np.uint64(1) < _COMMON)
        hits = np.flatnonzero(same.take(row, axis=0))
        row = row.take(hits // _WAYS)
        way = hits % _WAYS
        serials = self._owners.take(buckets.take(row) * _WAYS + way)
        kept, own = slots.take(row * _WAYS + way).astype(np.intp), picture.places.take(row)
        # Places are looked up with a margin, so that a difference says how far a block is moved down and across.
        moved = serials.astype(np.int64) * _REACH**2 + (_WIDE.take(own) - _WIDE.take(kept) + _REACH**2 // 2)
        # Most pictures end here: nothing has as many blocks in common with them as there must be regions.
        few, ordered = math.ceil(least) - 1, np.sort(moved)
        if not (ordered[few:] == ordered[: max(0, len(ordered) - few)]).any():
            return []
        groups = self._groups.take(serials % len(self._groups))
        alive = (groups["serial"] == serials) & (serials > 0) & _within(groups["since"], now, window_s)
        row, moved, kept = row[alive], moved[alive], kept[alive]
        if not len(row):
            return []
        # A block counts less the more groups have it.
        weights = 1 / np.bincount(row)[row]
        # Neighbouring blocks have pixels in common and a logo has many: each region of the picture counts once at most.
        keys, sums = _summed(moved * _REGIONS**2 + _REGION_OF.take(kept), weights)
        shares = np.minimum(sums, 1)
        quarters = keys % _REGIONS**2 // (_REGIONS**2 // 2) * 2 + keys % _REGIONS // (_REGIONS // 2)
        keys, starts, sizes = _runs(keys // _REGIONS**2)
        sums = np.add.reduceat(shares, starts)
        which = np.repeat(np.arange(len(keys)), sizes)
        spread = (np.bincount(which * 4 + quarters, shares, 4 * len(keys)).reshape(-1, 4) >= 1).sum(axis=1)
        enough = np.flatnonzero((sums >= least) & ((spread >= _SPREAD) | (sums >= _MANY * least)))
        found: dict[int, Match] = {}
        for place in enough[np.argsort(-sums[enough])].tolist():
            serial = int(keys[place] // _REACH**2)
            if serial not in found:
                group = self._groups[serial % len(self._groups)]
                found[serial] = Match(
                    serial, float(sums[place]), int(group["quarters"]), int(group["units"]), float(group["since"])
                )
        return list(found.values())

    def remember(self, serial: int, picture: Description, *, now: float, window_s: float) -> None:
        """Adds blocks of a picture to a group, those that it does not have yet."""
        chosen = np.flatnonzero(_KEPT.take(picture.places))
        codes, places = picture.codes.take(chosen), picture.places.take(chosen)
        buckets, tags = self._buckets_of(codes), _tags_of(codes)
        owners = self._owners.take(buckets, axis=0)
        same = (self._tags.take(buckets, axis=0) ^ tags[:, None]) < 2**_PLACE_BITS
        # What is not looked at any more needs no further slots.
        new = np.flatnonzero((_counted(same) <= _COMMON) & (_counted(same & (owners == serial)) == 0))
        buckets, owners = buckets.take(new), owners.take(new, axis=0)
        # Two blocks of a picture in one bucket would be written to the same slot: the last one stays.
        place = buckets * _WAYS + owners.argmin(axis=1)
        kept = np.flatnonzero(self._is_wanted(self._owners.take(place), now, window_s))
        if len(kept):
            owners = owners.take(kept, axis=0)
            worth = owners + self._is_wanted(owners, now, window_s) * np.uint64(2**32)
            place[kept] = buckets.take(kept) * _WAYS + worth.argmin(axis=1)
        self._write(self._tags.reshape(-1), place, tags.take(new) | places.take(new).astype(np.uint32))
        self._write(self._owners.reshape(-1), place, serial)

    def _is_wanted(self, serials: NDArray[np.uint32], now: float, window_s: float) -> NDArray[np.bool_]:
        """Tells which slots belong to groups whose near copies were asked for."""
        if not serials.any():
            return np.zeros(serials.shape, np.bool_)
        return _within(self._wanted.take(serials % len(self._wanted)), now, window_s)

    def answered(self, digest: int, now: float, window_s: float) -> bool:
        """Tells whether a digest was noted within the window."""
        row = self._digests[digest % len(self._digests)]
        return any(known == digest and since <= now < since + window_s for known, since in row.tolist())

    def note(self, digest: int, now: float) -> None:
        """Notes a digest, in the place of the oldest of its bucket."""
        bucket = digest % len(self._digests)
        row = self._digests[bucket]
        same = np.flatnonzero(row["digest"] == digest)
        way = int(same[0]) if len(same) else int(row["since"].argmin())
        self._write(self._digests, (bucket, way), (digest, now))


def _counted(same: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Returns how many of eight are true (n, 8) -> (n,)."""
    # The product has the sum of all bytes in the highest one.
    counts: NDArray[np.uint64] = same.view(np.uint64)[:, 0] * np.uint64(0x0101010101010101) >> np.uint64(56)
    return counts


def _tags_of(codes: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Returns the part of codes that stands in slots, with room for a place."""
    return codes.astype(np.uint32) << np.uint32(_PLACE_BITS)


def _runs(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.intp], NDArray[np.intp]]:
    """Returns the different ones of sorted keys, where each begins, and how often it occurs."""
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], starts, np.diff(starts, append=len(keys))


def _summed(keys: NDArray[np.int64], weights: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the different keys, sorted, and the sum of the weights of each."""
    order = keys.argsort()
    found, starts, _ = _runs(keys[order])
    return found, np.add.reduceat(weights[order], starts)


def _within(since: NDArray[np.float64], now: float, window_s: float) -> NDArray[np.bool_]:
    """Tells which times are not in the future and not a window ago."""
    return (since <= now) & (now < since + window_s)
