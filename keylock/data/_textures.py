"""Textures that fill the backgrounds and the objects of the drawn data set: six kinds, one distribution for both.

A texture is a field of values in [-1, 1]. `paint` turns it into colours around a base colour. Because objects and
backgrounds are painted by the same function from the same distribution, neither colour nor texture tells which
pixels are object, and nothing but the outline tells the class.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["TEXTURES", "TextureDraws", "paint"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TextureDraws:
    """The random numbers that one texture per image is made of; all are uniform in [0, 1).

    Attributes:
        kind: Which texture, (batch,).
        angle: Its direction, (batch,).
        frequency: How fine it is, (batch,).
        phase: Where it starts along both axes, (batch, 2).
        lattice: Values of the coarse noise, (batch, 7, 7).
        amplitude: How strong it is, (batch,).
        tint: The colour direction it varies along, (batch, 3).
    """

    kind: Floats
    angle: Floats
    frequency: Floats
    phase: Floats
    lattice: Floats
    amplitude: Floats
    tint: Floats

    def __getitem__(self, rows: "slice | NDArray[np.intp]") -> "TextureDraws":
        """Return the draws of some images."""
        return TextureDraws(**{name: value[rows] for name, value in vars(self).items()})


def paint(base: Floats, draws: TextureDraws, size: int) -> Floats:
    """Paint one textured square per image.

    Args:
        base: Base colours (batch, 3), in [0, 1].
        draws: The random numbers of the textures.
        size: Side of the square, in pixels.

    Returns:
        Colours (batch, size, size, 3), clipped to [0, 1].
    """
    names = list(TEXTURES)
    kinds = (draws.kind * len(names)).astype(np.intp)
    field = np.empty((len(base), size, size))
    for index, name in enumerate(names):
        rows = np.flatnonzero(kinds == index)
        if rows.size:
            field[rows] = TEXTURES[name](draws[rows], size)
    # Most of the variation is in brightness, a part of it in hue: that is how cloth, sand and painted walls look.
    tint = 0.7 + 0.6 * (draws.tint - 0.5)
    amplitude = 0.05 + 0.13 * draws.amplitude
    colours = base[:, None, None] + field[..., None] * (amplitude[:, None] * tint)[:, None, None]
    return np.clip(colours, 0.0, 1.0)


def _axes(draws: TextureDraws, size: int, *, waves: float = 1.0) -> tuple[Floats, Floats]:
    """Return rotated pixel coordinates u and v, (batch, size, size), in waves, shifted by the phase."""
    steps = (np.arange(size) + 0.5) / size - 0.5
    angle = np.pi * draws.angle
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    x, y = steps[None, None, :], steps[None, :, None]
    scale = (waves * (3.0 + 3.0 * draws.frequency))[:, None, None]
    u = (x * cos + y * sin) * scale + draws.phase[:, 0, None, None]
    v = (y * cos - x * sin) * scale + draws.phase[:, 1, None, None]
    return u, v


def _wave(turns: Floats) -> Floats:
    """Return a square wave with soft edges, period 1."""
    return np.clip(1.8 * np.sin(2 * np.pi * turns), -1.0, 1.0)


def _gradient(draws: TextureDraws, size: int) -> Floats:
    """Brightness that rises from one side to the other."""
    steps = (np.arange(size) + 0.5) / size * 2 - 1
    angle = 2 * np.pi * draws.angle[:, None, None]
    field: Floats = np.cos(angle) * steps[None, None, :] + np.sin(angle) * steps[None, :, None]
    return field * 1.1


def _stripes(draws: TextureDraws, size: int) -> Floats:
    """Parallel bands."""
    return _wave(_axes(draws, size)[0])


def _checks(draws: TextureDraws, size: int) -> Floats:
    """A chess board, rotated."""
    u, v = _axes(draws, size, waves=0.8)
    return _wave(u) * _wave(v)


def _dots(draws: TextureDraws, size: int) -> Floats:
    """Round dots on a rotated grid."""
    u, v = _axes(draws, size)
    return np.clip(2.5 * (np.cos(2 * np.pi * u) + np.cos(2 * np.pi * v)) - 2.4, -1.0, 1.0)


def _clouds(draws: TextureDraws, size: int) -> Floats:
    """Smooth noise: a coarse lattice of random values, interpolated."""
    cells = draws.lattice.shape[1] - 1
    position = (np.arange(size) + 0.5) / size * cells
    cell = np.minimum(position.astype(np.intp), cells - 1)
    fraction = position - cell
    # The smoothstep polynomial hides the lattice lines that straight interpolation would show.
    fraction = fraction * fraction * (3 - 2 * fraction)
    values = draws.lattice * 2 - 1
    rows = values[:, cell] * (1 - fraction)[None, :, None] + values[:, cell + 1] * fraction[None, :, None]
    field: Floats = rows[:, :, cell] * (1 - fraction) + rows[:, :, cell + 1] * fraction
    return field


def _weave(draws: TextureDraws, size: int) -> Floats:
    """Two crossing waves, like cloth."""
    u, v = _axes(draws, size, waves=1.3)
    return 0.5 * (np.sin(2 * np.pi * u) + np.sin(2 * np.pi * v))


TEXTURES: dict[str, Callable[[TextureDraws, int], Floats]] = {
    "gradient": _gradient,
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "clouds": _clouds,
    "weave": _weave,
}
"""Name to texture; each returns fields (batch, size, size) with values in about [-1, 1]."""
