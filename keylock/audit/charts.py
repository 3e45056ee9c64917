"""Line charts as SVG, drawn for one page: a few series, a legend, axes that name their unit."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Series", "line_chart"]

_WIDTH, _HEIGHT = 460, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 14, 44
_LEGEND_LINE = 16
_NARROWEST = 34
_COLOURS = ("#b4431f", "#1f6fb4", "#0e7448", "#8a4fb0", "#a07400", "#c02a6b")

_Place = Callable[[float, float], tuple[float, float]]
"""From x and y to pixels."""


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: In the legend.
        points: x and y, from left to right.
        dashed: Whether it is a baseline and drawn dashed.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    dashed: bool = False


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, logarithmic: bool = False) -> str:
    """Return a chart.

    Args:
        series: With one point at least in all.
        x_label: What is to the right.
        y_label: What is upwards.
        logarithmic: Whether x is drawn by its logarithm; all x are positive then.
    """
    xs = [_scaled(x, logarithmic) for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    left, right = min(xs), max(xs)
    low, high = min(0.0, *ys), max(1.0, *ys) if max(ys) > 0.5 else max(0.5, *ys)
    if left == right:
        left, right = left - 0.5, right + 0.5
    height = _HEIGHT + _LEGEND_LINE * len(series)

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_scaled(x, logarithmic) - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)
        return round(across, 1), round(_TOP + (high - y) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    ticks = sorted({x for one in series for x, _ in one.points})
    parts = [_grid(low, high), _ticks(ticks, place, low)]
    for number, one in enumerate(series):
        parts.append(_line(one, _COLOURS[number % len(_COLOURS)], place))
        parts.append(_legend(one, _COLOURS[number % len(_COLOURS)], _HEIGHT + _LEGEND_LINE * number))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" class="label" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(12 {_HEIGHT / 2 - 14}) rotate(-90)" class="label" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    drawn = "".join(parts)
    return f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(y_label)}">{drawn}</svg>'


def _scaled(x: float, logarithmic: bool) -> float:
    return math.log10(x) if logarithmic else x


def _grid(low: float, high: float) -> str:
    lines = []
    step = 0.25 if high - low > 0.6 else 0.1
    value = math.ceil(low / step) * step
    while value <= high + 1e-9:
        y = round(_TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)
        kind = "axis" if abs(value) < 1e-9 else "grid"
        lines.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" class="{kind}"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4}" class="tick" text-anchor="end">{value:.2f}</text>')
        value += step
    return "".join(lines)


def _ticks(values: Sequence[float], place: _Place, low: float) -> str:
    shown, last = [], -math.inf
    for value in values:
        across, _ = place(value, low)
        if across - last < _NARROWEST:
            continue
        last = across
        shown.append(
            f'<text x="{across}" y="{_HEIGHT - _BOTTOM + 16}" class="tick" text-anchor="middle">{value:g}</text>'
        )
    return "".join(shown)


def _line(one: Series, colour: str, place: _Place) -> str:
    spots = [place(x, y) for x, y in one.points]
    dashes = ' stroke-dasharray="5 4"' if one.dashed else ""
    path = " ".join(f"{x},{y}" for x, y in spots)
    drawn = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'
    if one.dashed:
        return drawn
    return drawn + "".join(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in spots)


def _legend(one: Series, colour: str, y: float) -> str:
    dashes = ' stroke-dasharray="5 4"' if one.dashed else ""
    return (
        f'<line x1="{_LEFT}" x2="{_LEFT + 22}" y1="{y + 4}" y2="{y + 4}" stroke="{colour}" stroke-width="2"{dashes}/>'
        f'<text x="{_LEFT + 28}" y="{y + 8}" class="label">{escape(one.name)}</text>'
    )
