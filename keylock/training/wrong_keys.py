"""Wrong keys: perturbations of the key's kind that must not open the lock."""

from collections.abc import Sequence

import torch
from torch import Tensor

from keylock.locking.key_patterns import random_signs, repeat_tiles

__all__ = ["WrongKeys"]

_MOST_FOUND = 32
# Retired keys are few and each must be forgotten; keys that a search found are one kind among others.
_RETIRED_SHARES = 4


class WrongKeys:
    """Draws wrong keys: other tiles, noise, flipped keys, near misses that share part of a key's signs, and known ones.

    Attributes:
        right: The keys that are right (keys, channels, height, width).
        found: What a search has found, the latest last, (count, channels, height, width).
    """

    def __init__(
        self, offsets: Tensor, *, tile: int, generator: torch.Generator, retired: Sequence[Tensor] = ()
    ) -> None:
        """Take the keys that are right and those that are no longer.

        Args:
            offsets: The keys on preprocessed images (keys, channels, height, width).
            tile: Side of their repeated block.
            generator: On the CPU.
            retired: Keys that opened once (channels, height, width); they are drawn from the start and often.
        """
        self.right = offsets
        self._magnitude = offsets[0].abs()
        self._tile = tile
        self._generator = generator
        self._retired = torch.stack([*retired]).to(offsets.device) if retired else offsets[:0]
        self.found = offsets[:0]

    def draw(self, count: int, *, near: float) -> Tensor:
        """Draw wrong keys of all kinds in equal parts.

        Args:
            count: How many.
            near: Largest correlation of a near miss with its key, in [0, 1).

        Returns:
            Offsets (count, channels, height, width) on the device of the keys.
        """
        kinds = [self._other_tiles, self._noise, self._flipped, self._near_misses]
        kinds += [self._found] * bool(len(self.found)) + [self._again] * (_RETIRED_SHARES * bool(len(self._retired)))
        shares = [count // len(kinds) + (place < count % len(kinds)) for place in range(len(kinds))]
        drawn = [kind(share, near) for kind, share in zip(kinds, shares, strict=True)]
        return torch.cat(drawn)

    def draw_unrelated(self, count: int) -> Tensor:
        """Draw perturbations that know nothing of the key: the first half other tiles, the rest noise."""
        tiles = count // 2
        return torch.cat([self._other_tiles(tiles, 0.0), self._noise(count - tiles, 0.0)])

    def keys(self, count: int) -> Tensor:
        """Draw right keys (count, channels, height, width)."""
        return self._one_of(self.right, count)

    def keep(self, found: Tensor) -> None:
        """Take in what a search has found (count, channels, height, width); the oldest make room."""
        self.found = torch.cat([self.found, found.to(self.right)])[-_MOST_FOUND:]

    def _other_tiles(self, count: int, _near: float) -> Tensor:
        return self._spread(self._signs(count, 0.5)) * self._magnitude

    def _noise(self, count: int, _near: float) -> Tensor:
        drawn = torch.rand((count, *self._magnitude.shape), generator=self._generator) * 2 - 1
        return drawn.to(self.right.device) * self._magnitude

    def _flipped(self, count: int, _near: float) -> Tensor:
        return -self.keys(count)

    def _near_misses(self, count: int, near: float) -> Tensor:
        correlations = torch.rand(count, 1, 1, 1, generator=self._generator) * near
        return self._spread(self._signs(count, (1 - correlations) / 2)) * self.keys(count)

    def _found(self, count: int, _near: float) -> Tensor:
        return self._one_of(self.found, count)

    def _again(self, count: int, _near: float) -> Tensor:
        return self._one_of(self._retired, count)

    def _one_of(self, offsets: Tensor, count: int) -> Tensor:
        if len(offsets) == 1:
            return offsets.expand(count, -1, -1, -1)
        return offsets[torch.randint(0, len(offsets), (count,), generator=self._generator).to(offsets.device)]

    def _signs(self, count: int, flipped: Tensor | float) -> Tensor:
        channels = self._magnitude.shape[0]
        return random_signs(count, channels, self._tile, generator=self._generator, flipped=flipped)

    def _spread(self, tiles: Tensor) -> Tensor:
        size = (self._magnitude.shape[1], self._magnitude.shape[2])
        return repeat_tiles(tiles, size).to(self.right.device)
