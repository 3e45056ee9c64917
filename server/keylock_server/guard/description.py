"""From pixels to what near copies have in common: one number for each of some small blocks of a picture.

A picture is scaled to 32 x 32 cells. Each block of a few cells gives a code: tones at every place, patterns at every
second one down and across. There are two kinds. *Tones*: mean
brightness, colours and slopes of a block, rounded; they survive noise, JPEG, and whatever is done to other blocks.
*Patterns*: which cells of a block are brightest and darkest, which holds when a smooth mask or another exposure scales
the block. Blocks without contrast give no code, because every plain background has them.

Codes are made with secret multipliers, so that nobody who reads the memory of a guard can turn them into pictures, or
look up whether a picture is in it, without those multipliers. They are drawn once for a server and all its workers.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

__all__ = ["CELLS", "Description", "Secret", "describe", "digests"]

CELLS = 32
"""Cells along each side of a scaled picture."""

_TONE = 4
_PATTERN = 6
_TONES = CELLS - _TONE + 1
_STRIDE = 2
_PATTERNS = (CELLS - _PATTERN) // _STRIDE + 1
_SIDE_OF_PATTERNS = 16
"""Pictures that are smaller give no patterns: within a pixel that covers several cells all are alike."""

# In these steps brightness, with the slopes, and two colours are rounded. A block tells something from a slope of one.
_STEPS = np.array([0.06, 0.04, 0.04], np.float32)
_LEAST_RANGE = 0.12
_COARSE = 8
_NUMBERS = 6
_LEVELS = 1023
_CELL_BITS = 10
_DIGEST_NONCE = bytes(12)

_MEAN = np.full(_TONE, 1 / _TONE, np.float32)
_SLOPE = np.repeat(np.array([-1, 1], np.float32), _TONE // 2) / np.float32(_TONE // 2)


def _banded(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the matrix that applies weights at every place of a side, float32 (cells, places)."""
    band = np.zeros((CELLS, _TONES), np.float32)
    for place in range(_TONES):
        band[place : place + _TONE, place] = weights
    return band


_ACROSS = np.concatenate([_banded(_MEAN), _banded(_SLOPE)], axis=1)
_DOWN = np.ascontiguousarray(_ACROSS.T)
_PLACE = np.arange(CELLS**2, dtype=np.int32)
_GRID = _PLACE.reshape(CELLS, CELLS)
_PATTERN_START = _GRID[: _PATTERNS * _STRIDE : _STRIDE, : _PATTERNS * _STRIDE : _STRIDE].ravel()
_INSIDE = np.zeros(CELLS**2, np.bool_)
_INSIDE[_GRID[1 : _PATTERN - 1, 1 : _PATTERN - 1]] = True
_PLACES = np.concatenate([_GRID[:_TONES, :_TONES].ravel(), _PATTERN_START]).astype(np.intp)
"""Where the first cell of every block is, tones first (blocks,)."""

# The corner of the picture belongs to a code: blocks are too common without. Copies that are moved by less keep most.
_CORNERS = (_PLACES // CELLS // _COARSE * (CELLS // _COARSE) + _PLACES % CELLS // _COARSE).astype(np.uint64)


@dataclass(frozen=True, eq=False)
class Secret:
    """The secret of a guard: what codes and digests are made with. It is drawn by `draw` and never written anywhere.

    Attributes:
        factors: Of the six numbers of a tone, whole float64 below 2**40 (6,).
        offsets: Of their steps, in 0 to 1 (6,).
        codes: Odd factors of tones and of patterns (2,).
        corners: What is added to the code of each block (blocks,).
        cipher: Makes digests.
    """

    factors: NDArray[np.float64]
    offsets: NDArray[np.float32]
    codes: NDArray[np.uint64]
    corners: NDArray[np.uint64]
    cipher: AESGCM

    @classmethod
    def draw(cls, generator: np.random.Generator) -> "Secret":
        """Draws a new one."""
        odd = generator.integers(0, 2**63, 5, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        corners = _CORNERS * odd[2]
        corners[_TONES**2 :] = _CORNERS[_TONES**2 :] * odd[3] + odd[4]
        factors = generator.integers(2**32, 2**40, _NUMBERS).astype(np.float64)
        offsets = generator.random(_NUMBERS, np.float32)[:, None]
        return cls(factors, offsets, odd[:2], corners, AESGCM(generator.bytes(16)))

    def __repr__(self) -> str:
        return "Secret(...)"


@dataclass(frozen=True, eq=False)
class Description:
    """What a picture looks like to the guard: the blocks that tell something.

    Attributes:
        codes: One for each, uint64 (blocks,).
        places: Where each begins: row times `CELLS` plus column (blocks,).
    """

    codes: NDArray[np.uint64]
    places: NDArray[np.intp]


def describe(
    pixels: NDArray[np.uint8] | NDArray[np.float32],
    secret: Secret,
    *,
    scale: NDArray[np.float32] | None = None,
    shift: NDArray[np.float32] | None = None,
) -> list[Description]:
    """Describes pictures.

    Args:
        pixels: uint8 in 0 to 255 or float32, (n, height, width, channels), of any size and in any order in memory.
        secret: That of the guard.
        scale: What pixels are multiplied by to come to 0 to 1, and
        shift: what is added then, for each channel; by default nothing is done.
    """
    planes = _planes(_to_cells(pixels), scale, shift)
    codes, telling = _tones(planes, secret)
    if min(pixels.shape[1:3]) >= _SIDE_OF_PATTERNS:
        patterns = _patterns(planes[:, 0], secret)
        codes, telling = (np.concatenate(pair, axis=1) for pair in zip((codes, telling), patterns, strict=True))
    found = []
    for row, chosen in zip(codes, telling, strict=True):
        blocks = np.flatnonzero(chosen)
        found.append(Description(_mixed(row.take(blocks)), _PLACES.take(blocks)))
    return found


def digests(pixels: NDArray[np.uint8] | NDArray[np.float32], secret: Secret) -> list[int]:
    """Returns a keyed digest of each picture of 64 bits, the same for identical pictures alone.

    It is the authentication tag of AES-GCM over the pixels, of which no caller learns anything: two different pictures
    of n bytes agree with a probability of at most n / 2**68, whoever chose them without knowing the key.

    References:
        McGrew and Viega, "The security and performance of the Galois/Counter Mode", INDOCRYPT 2004.
    """
    # As they lie in memory, so that nothing is copied; where an axis of one pixel lies says nothing.
    order = sorted(range(1, 4), key=lambda axis: (pixels.shape[axis] == 1, -pixels.strides[axis]))
    shape = repr((pixels.shape[1:], order, pixels.dtype.str)).encode()
    found = []
    for row in np.ascontiguousarray(pixels.transpose(0, *order)):
        tag = secret.cipher.encrypt(_DIGEST_NONCE, shape, row.data.cast("B"))
        found.append(int.from_bytes(tag[-8:], "little"))
    return found


def _mixed(codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spreads the upper half of codes, which are products, over all bits."""
    codes ^= codes >> np.uint64(32)
    codes *= np.uint64(0xC4CEB9FE1A85EC53)
    codes ^= codes >> np.uint64(33)
    return codes


def _to_cells(pixels: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns mean values of 32 x 32 cells, those of uint8 in 0 to 1, float32 (n, channels, 32, 32)."""
    count, height, width, channels = pixels.shape
    values = pixels.astype(np.float32, copy=False)
    if pixels.strides[3] < pixels.strides[2]:
        down = _averaged(values.reshape(count, 1, height, width * channels)).reshape(count, CELLS, width, channels)
        down = np.ascontiguousarray(down.transpose(0, 3, 1, 2))
    else:
        down = _averaged(values.transpose(0, 3, 1, 2))
    cells = down if width == CELLS else down @ _shares(width).T
    if pixels.dtype == np.uint8:
        cells = cells * np.float32(1 / 255)
    return cells


def _averaged(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the means of what lies in each of 32 rows (n, planes, height, width) -> (n, planes, 32, width)."""
    count, planes, height, width = values.shape
    if height == CELLS:
        return values
    if height % CELLS:
        found: NDArray[np.float32] = _shares(height) @ values
        return found
    parts = height // CELLS
    means: NDArray[np.float32] = values.reshape(count, planes, CELLS, parts, width).sum(axis=3) * np.float32(1 / parts)
    return means


@lru_cache(maxsize=64)
def _shares(length: int) -> NDArray[np.float32]:
    """Returns how much of each cell along a side is each pixel, float32 (cells, length)."""
    edges = np.arange(CELLS + 1) * (length / CELLS)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    shares: NDArray[np.float32] = (np.maximum(overlap, 0) * (CELLS / length)).astype(np.float32)
    return shares


def _planes(
    cells: NDArray[np.float32], scale: NDArray[np.float32] | None, shift: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Returns brightness and, of pictures with colours, two colours, in steps, float32 (n, 1 or 3, cells)."""
    count, channels = cells.shape[:2]
    weights = _weights(channels)
    flat = cells.reshape(count, channels, -1)
    added: NDArray[np.float32] | float = 0.0
    if scale is not None and shift is not None:
        weights, added = weights * scale, (weights @ shift)[:, None]
    planes: NDArray[np.float32] = weights @ flat + added
    return planes


@lru_cache(maxsize=8)
def _weights(channels: int) -> NDArray[np.float32]:
    """Returns how many steps of brightness and the two colours each channel makes, float32 (1 or 3, channels)."""
    kinds = np.full((3 if channels > 1 else 1, channels), 1 / channels, np.float32)
    if channels > 1:
        kinds[1:] *= np.array([[0], [-1]], np.float32)
        kinds[1, 0], kinds[1, -1] = 1, -1
        kinds[2, channels // 2] += 1
    weights: NDArray[np.float32] = kinds / _STEPS[: len(kinds), None]
    return weights


_Blocks = tuple[NDArray[np.uint64], NDArray[np.bool_]]
"""Codes of all blocks of one kind, which are not mixed yet, and which of them have enough contrast (n, blocks)."""


def _tones(planes: NDArray[np.float32], secret: Secret) -> _Blocks:
    """Describes tones."""
    count, kinds = planes.shape[:2]
    used = kinds + 3
    across = (planes.reshape(-1, CELLS) @ _ACROSS).reshape(count, kinds, CELLS, -1)
    of_grey = _DOWN @ across[:, 0]
    found = np.empty((count, used, _TONES, _TONES), np.float32)
    found[:, 0], found[:, 1] = of_grey[:, :_TONES, :_TONES], of_grey[:, :_TONES, _TONES:]
    # The twist, which is the difference of the diagonals, is twice as large as a slope.
    found[:, 2], found[:, 3] = of_grey[:, _TONES:, :_TONES], of_grey[:, _TONES:, _TONES:] * np.float32(0.5)
    if kinds > 1:
        np.matmul(_DOWN[:_TONES], across[:, 1:, :, :_TONES], out=found[:, 4:])
    levels = found.reshape(count, used, -1)
    slopes = np.abs(levels[:, 1:4]).max(axis=1)
    levels += secret.offsets[:used]
    np.floor(levels, out=levels)
    # Whole numbers far below 2**53: the sum is exact.
    summed = secret.factors[:used] @ levels.astype(np.float64)
    codes = summed.astype(np.int64).view(np.uint64)
    codes *= secret.codes[0]
    codes += secret.corners[: _TONES**2]
    return codes, slopes > 1


def _patterns(grey: NDArray[np.float32], secret: Secret) -> _Blocks:
    """Describes patterns of brightness in steps (n, cells)."""
    levels = (grey * np.float32(_LEVELS * _STEPS[0])).astype(np.int32) * CELLS**2
    # Every cell says its place too, so that the largest of a block says where it is.
    sides = np.stack([_PLACE + levels, _PLACE - levels]).reshape(2, len(grey), CELLS, CELLS)
    across = _largest(np.ascontiguousarray(_largest(sides).transpose(0, 1, 3, 2)))
    extremes = across.transpose(0, 1, 3, 2).reshape(2, len(grey), -1)
    # The lower bits of a negative number are places too.
    high, low = (extremes & (CELLS**2 - 1)) - _PATTERN_START
    codes = (high * CELLS**2 + low).astype(np.uint64)
    codes *= secret.codes[1]
    codes += secret.corners[_TONES**2 :]
    # What is left of a negative number is rounded down, and the two differ by the range.
    extremes >>= _CELL_BITS
    telling = extremes[0] + extremes[1] > _LEAST_RANGE * _LEVELS
    # At an edge of two plain areas, and on a slope, both are at the border, and every picture has those.
    telling &= _INSIDE.take(high) | _INSIDE.take(low)
    return codes, telling


def _largest(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """Returns the largest of every second six that follow one another down (..., cells, n) -> (..., places, n)."""
    pairs = np.maximum(values[..., 1:, :], values[..., :-1, :])
    fours = np.maximum(pairs[..., :-4, :], pairs[..., 2:-2, :])
    return np.maximum(fours[..., ::_STRIDE, :], pairs[..., 4::_STRIDE, :])
