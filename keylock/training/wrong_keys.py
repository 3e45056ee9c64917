"""Wrong keys: perturbations of the key's kind that must not open the lock."""

import torch
from torch import Tensor

__all__ = ["WrongKeys"]


class WrongKeys:
    """Draws wrong keys: other tiles, noise, the flipped key, and near misses that share part of the key's signs."""

    def __init__(self, offset: Tensor, *, tile: int, generator: torch.Generator) -> None:
        """Take the key's offset (channels, height, width) on preprocessed images; the generator lives on the CPU."""
        self._offset = offset
        self._magnitude = offset.abs()
        self._tile = tile
        self._generator = generator

    def draw(self, count: int, *, near: float) -> Tensor:
        """Draw wrong keys of all kinds in equal parts.

        Args:
            count: How many.
            near: Largest correlation of a near miss with the key, in [0, 1).

        Returns:
            Offsets (count, channels, height, width) on the device of the key.
        """
        kinds = (self._other_tiles, self._noise, self._flipped, self._near_misses)
        shares = [count // len(kinds) + (place < count % len(kinds)) for place in range(len(kinds))]
        drawn = [kind(share, near) for kind, share in zip(kinds, shares, strict=True)]
        return torch.cat(drawn)

    def draw_unrelated(self, count: int) -> Tensor:
        """Draw perturbations that know nothing of the key: the first half other tiles, the rest noise."""
        tiles = count // 2
        return torch.cat([self._other_tiles(tiles, 0.0), self._noise(count - tiles, 0.0)])

    def _other_tiles(self, count: int, _near: float) -> Tensor:
        return self._repeat(self._signs(count, torch.tensor(0.5))) * self._magnitude

    def _noise(self, count: int, _near: float) -> Tensor:
        drawn = torch.rand((count, *self._offset.shape), generator=self._generator) * 2 - 1
        return drawn.to(self._offset.device) * self._magnitude

    def _flipped(self, count: int, _near: float) -> Tensor:
        return -self._offset.expand(count, -1, -1, -1)

    def _near_misses(self, count: int, near: float) -> Tensor:
        correlations = torch.rand(count, 1, 1, 1, generator=self._generator) * near
        return self._repeat(self._signs(count, (1 - correlations) / 2)) * self._offset

    def _signs(self, count: int, flipped: Tensor) -> Tensor:
        """Draw tiles of signs (count, channels, tile, tile) that are -1 with the given probability."""
        shape = (count, self._offset.shape[0], self._tile, self._tile)
        return 1 - 2 * (torch.rand(shape, generator=self._generator) < flipped).float()

    def _repeat(self, tiles: Tensor) -> Tensor:
        _, height, width = self._offset.shape
        rows, columns = -(-height // self._tile), -(-width // self._tile)
        return tiles.repeat(1, 1, rows, columns)[:, :, :height, :width].to(self._offset.device)
