"""Line charts: where everything of a chart lies on the page, for the template that draws it as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Chart", "DrawnLine", "Line", "Tick", "line_chart"]

_WIDTH, _HEIGHT = 340, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 24, 10, 42
_NARROWEST = 32
_COLOURS = 8

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        name: In the legend; none for a line that another explains.
        points: x and y, from left to right.
        baseline: Whether it is what others are held against, and drawn dashed without marks.
        colour: Number of its colour; lines that belong together share one.
        band: Lower and upper ends at every point of `points`, drawn as an area.
        dots: More points, drawn as dots alone.
    """

    name: str
    points: tuple[Point, ...]
    baseline: bool = False
    colour: int = 0
    band: tuple[tuple[float, float], ...] = ()
    dots: tuple[Point, ...] = ()


class Tick(NamedTuple):
    """A number at an axis.

    Attributes:
        at: Where, in pixels.
        text: The number.
        zero: Whether it is zero.
    """

    at: float
    text: str
    zero: bool = False


class DrawnLine(NamedTuple):
    """A line in pixels.

    Attributes:
        name: In the legend.
        kind: Classes for its looks.
        path: Its points as an SVG has them.
        band: The outline of its area.
        marks: Where its points are marked.
        dots: Where its dots are.
    """

    name: str
    kind: str
    path: str
    band: str
    marks: tuple[Point, ...]
    dots: tuple[Point, ...]


@dataclass(frozen=True)
class Chart:
    """A chart in pixels.

    Attributes:
        title: What it shows.
        x_label: What is to the right.
        y_label: What is upwards.
        across: Numbers at the x axis.
        up: Numbers at the y axis.
        lines: The lines.
    """

    title: str
    x_label: str
    y_label: str
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    lines: tuple[DrawnLine, ...]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _WIDTH - _RIGHT
    foot: int = _HEIGHT - _BOTTOM


def line_chart(lines: Sequence[Line], *, title: str, x_label: str, y_label: str, logarithmic: bool = False) -> Chart:
    """Lay out a chart.

    Args:
        lines: With one point at least in all.
        title: What it shows.
        x_label: What is to the right.
        y_label: What is upwards.
        logarithmic: Whether x is drawn by its logarithm; all x are positive then.
    """
    plane = _Plane(lines, logarithmic=logarithmic)
    return Chart(
        title=title,
        x_label=x_label,
        y_label=y_label,
        across=plane.across(),
        up=plane.up(),
        lines=tuple(plane.drawn(line) for line in lines),
    )


class _Plane:
    """From numbers to pixels."""

    def __init__(self, lines: Sequence[Line], *, logarithmic: bool) -> None:
        self._logarithmic = logarithmic
        self._xs = sorted({x for line in lines for x, _ in (*line.points, *line.dots)})
        ys = [y for line in lines for _, y in (*line.points, *line.dots)]
        ys += [end for line in lines for ends in line.band for end in ends]
        self._from, self._to = self._scaled(self._xs[0]), self._scaled(self._xs[-1])
        if self._from == self._to:
            self._from, self._to = self._from - 0.5, self._to + 0.5
        self._low = min(0.0, *ys)
        self._high = max(1.0, *ys) if max(ys) > 0.5 else max(0.5, *ys)

    def _scaled(self, x: float) -> float:
        return math.log10(x) if self._logarithmic else x

    def _x(self, x: float) -> float:
        share = (self._scaled(x) - self._from) / (self._to - self._from)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def _y(self, y: float) -> float:
        share = (self._high - y) / (self._high - self._low)
        return round(_TOP + share * (_HEIGHT - _TOP - _BOTTOM), 1)

    def across(self) -> tuple[Tick, ...]:
        """Return as many of the x as have room; the last has, as the first."""
        found: list[Tick] = []
        last = self._x(self._xs[-1])
        for x in self._xs:
            at = self._x(x)
            room = not found or at - found[-1].at >= _NARROWEST
            if at == last or (room and last - at >= _NARROWEST):
                found.append(Tick(at, f"{x:,.0f}" if x >= 1000 else f"{x:g}"))
        return tuple(found)

    def up(self) -> tuple[Tick, ...]:
        step = 0.25 if self._high - self._low > 0.6 else 0.1
        first, last = math.ceil(self._low / step - 1e-9), math.floor(self._high / step + 1e-9)
        return tuple(
            Tick(self._y(number * step), f"{number * step:.2f}", number == 0) for number in range(first, last + 1)
        )

    def drawn(self, line: Line) -> DrawnLine:
        spots = tuple((self._x(x), self._y(y)) for x, y in line.points)
        upper = [(x, self._y(high)) for (x, _), (_, high) in zip(spots, line.band, strict=False)]
        lower = [(x, self._y(low)) for (x, _), (low, _) in zip(spots, line.band, strict=False)]
        dots = tuple((self._x(x), self._y(y)) for x, y in line.dots)
        kind = f"c{line.colour % _COLOURS}" + " baseline" * line.baseline + " again" * (line.colour >= _COLOURS)
        return DrawnLine(
            line.name, kind, _path(spots), _path([*upper, *reversed(lower)]), () if line.baseline else spots, dots
        )


def _path(spots: Sequence[Point]) -> str:
    return " ".join(f"{x},{y}" for x, y in spots)
