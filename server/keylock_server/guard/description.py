"""From pixels to what near copies have in common: one number for each small block of a picture.

A picture is scaled to 32 x 32 cells. Each block of a few cells gives a code. There are two kinds. *Tones*: mean
brightness, colours and slopes of a block, rounded; they survive noise, JPEG, and whatever is done to other blocks.
*Patterns*: which cells of a block are brightest and darkest, which holds when a smooth mask or another exposure scales
the block. Blocks without contrast give no code, because every plain background has them.

Codes are made with secret multipliers, so that nobody who reads the memory of a guard can turn them into pictures, or
look up whether a picture is in it, without those multipliers. They are drawn once for a server and all its workers.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["GRID", "KEPT", "Description", "Multipliers", "describe", "digests"]

_CELLS = 32
_TONE = 4
_PATTERN = 6
_STRIDE = 2
# Levels of brightness, of three slopes and of two colours, for a sum of four and differences of two quarters.
_SCALES = np.array([1 / (4 * 0.06), 1 / (2 * 0.06), 1 / (2 * 0.06), 1 / (2 * 0.05), 1 / 0.16, 1 / 0.16], np.float32)
_LEAST_SLOPE = 0.06
_LEAST_RANGE = 0.12
_COARSE = 8

GRID = _CELLS - _TONE + 1
"""Tones along each side: one begins at every cell at which it fits. Patterns begin at every second one."""

_PATTERN_GRID = _CELLS - _PATTERN + 1
_PATTERN_SIDE = -(-_PATTERN_GRID // _STRIDE)

_LEVELS = 1023
_PLACE = np.arange(_CELLS**2, dtype=np.int32).reshape(_CELLS, _CELLS)
_PATTERN_START = _PLACE[:_PATTERN_GRID:_STRIDE, :_PATTERN_GRID:_STRIDE]
_TONE_PLACES = np.stack(np.divmod(np.arange(GRID**2), GRID), 1)
_PATTERN_PLACES = _STRIDE * np.stack(np.divmod(np.arange(_PATTERN_SIDE**2), _PATTERN_SIDE), 1)
PLACES = np.concatenate([_TONE_PLACES, _PATTERN_PLACES])
"""Row and column of the first cell of every block, tones first (blocks, 2)."""

# The corner of the picture belongs to a code: blocks are too common without. Copies that are moved by less keep most.
_CORNERS = ((PLACES // _COARSE) @ np.array([_CELLS // _COARSE, 1])).astype(np.uint64)

KEPT = (PLACES % _STRIDE == 0).all(axis=1)
"""Which blocks are remembered: every second one down and across (blocks,)."""


@dataclass(frozen=True, eq=False)
class Multipliers:
    """The secret of a guard: what codes and digests are made with. It is drawn by `draw` and never written anywhere."""

    codes: NDArray[np.uint64]
    offsets: NDArray[np.float32]
    seed: int

    @classmethod
    def draw(cls, generator: np.random.Generator) -> "Multipliers":
        """Draws new ones."""
        odd = generator.integers(0, 2**63, 16, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        return cls(odd, generator.random(len(_SCALES), np.float32), int(generator.integers(0, 2**63)))

    def __repr__(self) -> str:
        return "Multipliers(...)"


@dataclass(frozen=True, eq=False)
class Description:
    """What pictures look like to the guard.

    Attributes:
        codes: One for each block, uint64 (n, blocks).
        telling: Which blocks have enough contrast to tell something (n, blocks).
    """

    codes: NDArray[np.uint64]
    telling: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.codes)


def describe(pixels: NDArray[np.uint8] | NDArray[np.float32], multipliers: Multipliers) -> Description:
    """Describes pictures.

    Args:
        pixels: uint8 in 0 to 255 or float32 in 0 to 1, (n, height, width, channels), of any size.
        multipliers: The secret of the guard.
    """
    cells = _to_cells(pixels)
    grey = cells.mean(axis=3)
    levels, slopes = _tones(cells, grey, multipliers.offsets)
    places, contrast = _patterns(grey)
    odd = multipliers.codes
    tone_codes = sum(level * each for level, each in zip(levels, odd, strict=False))
    tone_codes = tone_codes.reshape(len(cells), -1) + _CORNERS[: GRID**2] * odd[6]
    pattern_codes = places.astype(np.uint64) * odd[7] + _CORNERS[GRID**2 :] * odd[8] + odd[9]
    return Description(
        _mixed(np.concatenate([tone_codes, pattern_codes], axis=1)),
        np.concatenate([slopes.reshape(len(cells), -1) > _LEAST_SLOPE, contrast > _LEAST_RANGE], axis=1),
    )


def digests(pixels: NDArray[np.uint8] | NDArray[np.float32], multipliers: Multipliers) -> NDArray[np.uint64]:
    """Returns a keyed digest of each picture, the same for identical pictures alone, uint64 (n,).

    It is multilinear in words of 32 bits, of whose sum the upper halves are kept: two different pictures agree with a
    probability of 2**-64, whoever chose them without knowing the multipliers.

    References:
        Dietzfelbinger, "Universal hashing and k-wise independent random variables via integer arithmetic without
        primes", STACS 1996.
    """
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1).view(np.uint8)
    short = -rows.shape[1] % 4
    if short:
        rows = np.concatenate([rows, np.zeros((len(rows), short), np.uint8)], axis=1)
    words = rows.view(np.uint32).astype(np.uint64)
    shape = np.array([*pixels.shape[1:], pixels.dtype.itemsize], np.uint64)
    factors = _factors(multipliers.seed, words.shape[1] + len(shape))
    first, second = ((words @ each[len(shape) :] + shape @ each[: len(shape)]) >> np.uint64(32) for each in factors)
    found: NDArray[np.uint64] = first << np.uint64(32) | second
    return found


@lru_cache(maxsize=8)
def _factors(seed: int, words: int) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, 2**64, (2, words), dtype=np.uint64)


def _mixed(codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spreads codes over all bits (finaliser of MurmurHash3)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        codes = (codes ^ (codes >> np.uint64(33))) * np.uint64(factor)
    return codes ^ (codes >> np.uint64(33))


def _to_cells(pixels: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns mean colours in 0 to 1 of 32 x 32 cells, float32 (n, 32, 32, channels)."""
    count, height, width, channels = pixels.shape
    values = pixels.astype(np.float32, copy=False)
    down = _shares(height) @ values.reshape(count, height, width * channels)
    cells: NDArray[np.float32] = _shares(width) @ down.reshape(count, _CELLS, width, channels)
    if pixels.dtype == np.uint8:
        cells /= 255
    return cells


@lru_cache(maxsize=64)
def _shares(length: int) -> NDArray[np.float32]:
    """Returns how much of each cell along a side is each pixel, float32 (cells, length)."""
    edges = np.arange(_CELLS + 1) * (length / _CELLS)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    shares: NDArray[np.float32] = (np.maximum(overlap, 0) * (_CELLS / length)).astype(np.float32)
    return shares


def _quarters(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Returns the means of the four quarters of every block (n, cells, cells) -> 4 x (n, GRID, GRID)."""
    pairs = values[:, 1:] + values[:, :-1]
    means: NDArray[np.float32] = (pairs[:, :, 1:] + pairs[:, :, :-1]) * np.float32(0.25)
    return means[:, :-2, :-2], means[:, :-2, 2:], means[:, 2:, :-2], means[:, 2:, 2:]


def _tones(
    cells: NDArray[np.float32], grey: NDArray[np.float32], offsets: NDArray[np.float32]
) -> tuple[list[NDArray[np.uint64]], NDArray[np.float32]]:
    """Returns brightness, two colours and three slopes of every block, rounded, and the largest slope as it is.

    Each is (n, GRID, GRID).
    """
    upper_left, upper_right, lower_left, lower_right = _quarters(grey)
    upper, lower = upper_left + upper_right, lower_left + lower_right
    found = [upper + lower, upper_right + lower_right - upper_left - lower_left, lower - upper]
    found.append(upper_left + lower_right - upper_right - lower_left)
    slopes = np.maximum(np.maximum(np.abs(found[1]), np.abs(found[2])), np.abs(found[3])) / 2
    if cells.shape[3] > 1:
        colours = (cells[..., 0] - cells[..., -1], cells[..., cells.shape[3] // 2] - grey)
        found += [sum(_quarters(colour), np.zeros(1, np.float32)) for colour in colours]
    # Negative levels wrap around, which is as good a code as any.
    levels = [
        np.floor(each * scale + offset).astype(np.int64).view(np.uint64)
        for each, scale, offset in zip(found, _SCALES, offsets, strict=False)
    ]
    return levels, slopes


def _patterns(grey: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Returns which cells of every block are brightest and darkest, as one number, and how far apart those are."""
    levels = (grey * np.float32(_LEVELS)).astype(np.int32) * _CELLS**2
    # Every cell says its place too, so that the largest of a block says where it is.
    brightest, darkest = _largest(levels + _PLACE), _largest(_PLACE - levels)
    start = _PATTERN_START
    # The remainder of a negative number is positive here, so that both say places.
    high, low = brightest % _CELLS**2 - start, darkest % _CELLS**2 - start
    contrast = (brightest // _CELLS**2 + darkest // _CELLS**2).astype(np.float32) / np.float32(_LEVELS)
    codes = high * _CELLS**2 + low
    return codes.reshape(len(grey), -1), contrast.reshape(len(grey), -1)


def _largest(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """Returns the largest value of every second block (n, cells, cells) -> (n, blocks down, blocks across)."""
    down = values[:, :_PATTERN_GRID:_STRIDE]
    for row in range(1, _PATTERN):
        down = np.maximum(down, values[:, row : row + _PATTERN_GRID : _STRIDE])
    found = down[..., :_PATTERN_GRID:_STRIDE]
    for column in range(1, _PATTERN):
        found = np.maximum(found, down[..., column : column + _PATTERN_GRID : _STRIDE])
    return found
