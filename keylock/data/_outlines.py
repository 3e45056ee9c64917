"""The outlines of the drawn data set: one function per class, each a polygon with, for the ring, a hole.

Points are (n, 2) arrays of x and y, y pointing down, in any unit: `unit_outlines` scales every outline to area 1
around the middle of its bounding box.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["OUTLINES", "Outline", "unit_outlines"]

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Outline:
    """A filled polygon, with an optional hole.

    Attributes:
        outer: Corners of the polygon, (n, 2).
        hole: Corners of the hole, (m, 2), or None.
    """

    outer: Points
    hole: Points | None = None


def _arc(start_deg: float, stop_deg: float, *, radius: float = 1.0, centre: tuple[float, float] = (0, 0)) -> Points:
    """Return points on an arc, both ends included."""
    angles = np.radians(np.linspace(start_deg, stop_deg, 49))
    points: Points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + np.asarray(centre)
    return points


def _regular(radii: list[float]) -> Points:
    """Return the corners at equal angles whose distances from the middle are given, the first one on top."""
    angles = 2 * np.pi * np.arange(len(radii)) / len(radii) - np.pi / 2
    points: Points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.asarray(radii)[:, None]
    return points


# The outlines, in units of their own.


def _circle() -> Outline:
    return Outline(_arc(0, 360))


def _square() -> Outline:
    return Outline(np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]))


def _triangle() -> Outline:
    return Outline(_regular([1, 1, 1]))


def _star() -> Outline:
    return Outline(_regular([1, 0.45] * 5))


def _cross() -> Outline:
    a = 0.36
    return Outline(
        np.array(
            [[-a, -1], [a, -1], [a, -a], [1, -a], [1, a], [a, a], [a, 1], [-a, 1], [-a, a], [-1, a], [-1, -a], [-a, -a]]
        )
    )


def _ring() -> Outline:
    return Outline(_arc(0, 360), _arc(0, 360, radius=0.52))


def _heart() -> Outline:
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return Outline(np.stack([x, -y], axis=1))


def _crescent() -> Outline:
    # The unit circle without a smaller one that is shifted to the right; the two meet in the tips, at (x, ±y).
    shift, radius = 0.52, 0.76
    x = (1 - radius**2 + shift**2) / (2 * shift)
    y = np.sqrt(1 - x**2)
    outer_deg = float(np.degrees(np.arctan2(y, x)))
    inner_deg = float(np.degrees(np.arctan2(y, x - shift)))
    outside = _arc(outer_deg, 360 - outer_deg)
    inside = _arc(360 - inner_deg, inner_deg, radius=radius, centre=(shift, 0))
    return Outline(np.concatenate([outside, inside[1:-1]]))


OUTLINES: dict[str, Callable[[], Outline]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "crescent": _crescent,
}
"""Class name to outline, in the order of the labels."""


def unit_outlines() -> list[Outline]:
    """Return every outline scaled to area 1 around the middle of its bounding box, in the order of the labels."""
    return [_unit(make()) for make in OUTLINES.values()]


def _unit(outline: Outline) -> Outline:
    middle = (outline.outer.min(axis=0) + outline.outer.max(axis=0)) / 2
    area = _area(outline.outer) - (0.0 if outline.hole is None else _area(outline.hole))
    scale = 1 / np.sqrt(area)
    hole = None if outline.hole is None else (outline.hole - middle) * scale
    return Outline((outline.outer - middle) * scale, hole)


def _area(points: Points) -> float:
    """Return the area of a polygon (the shoelace formula)."""
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
