"""The page of an evaluation: what the lock is worth in a few sentences, the gate, maps, and every figure."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from keylock.bundle.manifest import Figure
from keylock.evaluation.counting import counting_pairs
from keylock.evaluation.gate import GateCurve, Sweep
from keylock.evaluation.report import Evaluation
from keylock.evaluation.similarity import pearson
from keylock.evaluation.tables import FigureTable, map_tables, prediction_table
from keylock.imaging.heatmaps import colourise, resize, without_peaks
from keylock.reports import Cell, Chart, Line, Picture, Table, embed, line_chart, render_page

__all__ = ["render_evaluation"]

_KINDS = {"reference": "reference", "keyed": "keyed", "keyless": "keyless", "wrong_key": "wrong key"}
_CLOSED = ("keyless", "wrong_key", "flipped_key")
_SWEEPS: tuple[tuple[Sweep, str, str], ...] = (
    ("correlation", "Near misses of the key", "correlation with the key"),
    ("strength", "The key, weaker and stronger", "strength, in that of the key"),
)
_SIDE = 96
_MANY = 8
_FEW_IMAGES = 2


class _Grid(NamedTuple):
    """Maps of one explainer, a row for each image."""

    label: str
    rows: tuple[tuple[Picture, ...], ...]


def render_evaluation(
    evaluation: Evaluation, pixels: NDArray[np.uint8], samples: Mapping[str, Mapping[str, Tensor]]
) -> str:
    """Return the page as HTML.

    Args:
        evaluation: What was measured.
        pixels: Some images (count, height, width, channels), uint8.
        samples: For each explainer's label their maps (count, h, w) by `reference`, `keyed`, `keyless`, `wrong_key`.
    """
    shown = pixels if len(samples) <= _MANY else pixels[:_FEW_IMAGES]
    figures = evaluation.values()
    return render_page(
        "keylock.evaluation",
        "evaluation.html",
        evaluation=evaluation,
        sentences=_sentences(evaluation),
        charts=[] if evaluation.gate is None else _charts(evaluation.gate),
        titles=("image", *_KINDS.values()),
        grids=[_grid(label, shown, maps) for label, maps in samples.items()],
        tables=[_table(table) for table in (prediction_table(evaluation), *map_tables(evaluation)) if table.rows],
        area=_cell(figures["object_area"], "{:.3f}".format) if "object_area" in figures else None,
        skipped=list(evaluation.skipped.items()),
        made_of=_made_of(evaluation),
    )


def _sentences(evaluation: Evaluation) -> list[str]:
    """Return what was found in plain words; what was not measured is not spoken of."""
    figures, locked = evaluation.values(), list(evaluation.labels(locked=True))
    found = []
    keyed = [figures[f"pcc/keyed/{label}"].value for label in locked if f"pcc/keyed/{label}" in figures]
    if keyed:
        found.append(
            f"With the key, maps of what was locked correlate with the true ones by {min(keyed):.3f} at least."
        )
    found += _leakage(figures, locked, "what was locked")
    found += _leakage(figures, list(evaluation.labels(locked=False)), "explainers that were not locked")
    accuracy = {kind: figures[name].value for kind in _KINDS if (name := f"accuracy/{kind}") in figures}
    if {"keyless", "reference"} <= set(accuracy):
        found.append(
            f"Everybody gets predictions of which {accuracy['keyless']:.1%} are right; before locking it was "
            f"{accuracy['reference']:.1%}."
        )
    return found


def _leakage(figures: Mapping[str, Figure], labels: list[str], whose: str) -> list[str]:
    most = {
        label: max(abs(figures[name].value) for kind in _CLOSED if (name := f"pcc/{kind}/{label}") in figures)
        for label in labels
        if any(f"pcc/{kind}/{label}" in figures for kind in _CLOSED)
    }
    if not most:
        return []
    worst = max(most, key=lambda label: most[label])
    text = (
        f"Without the key, or with a wrong one, maps of {whose} correlate with the true ones by {most[worst]:.3f} at "
        f"most ({worst})"
    )
    chance = {label: figures[name].value for label in most if (name := f"pcc/chance/{label}") in figures}
    beyond = [label for label in chance if most[label] > chance[label]]
    if not chance:
        return [text + "."]
    if not beyond:
        return [text + ", and none by more than the true map of another image does."]
    return [f"{text}. By more than the true map of another image does: {', '.join(beyond)}."]


def _charts(curve: GateCurve) -> list[Chart]:
    charts = []
    for sweep, title, x_label in _SWEEPS:
        lines = []
        for colour, (explainer, chance) in enumerate(curve.chance.items()):
            points = [
                (float(point.at), point) for point in curve.of(sweep, explainer) if not isinstance(point.at, tuple)
            ]
            if not points:
                continue
            lines.append(
                Line(
                    explainer,
                    tuple((at, point.mean) for at, point in points),
                    colour=colour,
                    band=tuple((point.low, point.high) for _, point in points),
                    dots=tuple((at, point.largest) for at, point in points if point.draws > 1),
                )
            )
            level = ((points[0][0], chance), (points[-1][0], chance))
            lines.append(Line("", level, baseline=True, colour=colour))
        if lines:
            charts.append(line_chart(lines, title=title, x_label=x_label, y_label="PCC with the reference map"))
    return charts


def _grid(label: str, pixels: NDArray[np.uint8], maps: Mapping[str, Tensor]) -> _Grid:
    rows = []
    for place in range(min(len(pixels), *(len(maps[kind]) for kind in _KINDS))):
        image = Image.fromarray(pixels[place].squeeze()).convert("RGB")
        row = [embed(image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST), f"image {place + 1}", kind="pixels")]
        for kind, title in _KINDS.items():
            pair = maps[kind][place : place + 1], maps["reference"][place : place + 1]
            told = bool(counting_pairs(*pair, opened=kind == "keyed"))
            caption = f"r = {float(pearson(*pair)):+.2f}" if told else "constant"
            drawn = colourise(resize(without_peaks(maps[kind][place].float().numpy()), size=(_SIDE, _SIDE)))
            row.append(
                embed(
                    Image.fromarray(drawn),
                    f"{title} map of image {place + 1} by {label}",
                    caption="" if kind == "reference" else caption,
                    caption_kind="good" if kind == "keyed" else "",
                )
            )
        rows.append(tuple(row))
    return _Grid(label, tuple(rows))


def _table(table: FigureTable) -> Table:
    rows: list[list[Cell | str]] = [
        [*row.names, *(_cell(figure, table.form) for figure in row.figures)] for row in table.rows
    ]
    return Table.of(table.title.capitalize(), table.header, rows, kind="figures")


def _cell(figure: Figure | None, form: Callable[[float], str]) -> Cell:
    if figure is None:
        return Cell("-")
    ends = "" if figure.low is None or figure.high is None else f"{form(figure.low)} to {form(figure.high)}"
    return Cell(form(figure.value), ends, "good" if figure.name.startswith("pcc/keyed/") else "")


def _made_of(evaluation: Evaluation) -> list[tuple[str, str]]:
    rows = [("model", evaluation.model_digest)]
    for entry in evaluation.explainers:
        settings = ", ".join(f"{name} {value}" for name, value in entry.parameters.items())
        rows.append((entry.label, f"{entry.name}{': ' if settings else ''}{settings}"))
    return rows
