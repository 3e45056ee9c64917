"""An evaluation as tables: predictions, similarity of maps, localisation, faithfulness, the gate."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from keylock.cli._console import print_table

if TYPE_CHECKING:
    from keylock.bundle import Figure
    from keylock.evaluation import Evaluation, GateCurve
    from keylock.evaluation.tables import FigureTable

__all__ = ["print_evaluation"]


def print_evaluation(evaluation: "Evaluation") -> None:
    """Print what was found; after ± stands half of the 95 % interval."""
    from keylock.evaluation.tables import map_tables, prediction_table

    figures = evaluation.values()
    typer.echo(f"{evaluation.model}, {evaluation.about}; ± is half of the 95 % interval\n")
    _print_figures(prediction_table(evaluation))
    for table in map_tables(evaluation):
        typer.echo()
        _print_figures(table)
    if "object_area" in figures:
        typer.echo(f"\nthe object's share of the area: {_cell(figures['object_area'], '{:.3f}'.format)}")
    if evaluation.gate is not None:
        _print_gate(evaluation.gate)
    for name, why in evaluation.skipped.items():
        typer.echo(f"\nleft out: {name}: {why}")


def _print_figures(table: "FigureTable") -> None:
    rows = [(*row.names, *(_cell(figure, table.form) for figure in row.figures)) for row in table.rows]
    print_table(table.header, rows)


def _print_gate(curve: "GateCurve") -> None:
    typer.echo(f"\nPCC of near misses of the key, mean (largest draw), {curve.images} images")
    explainers = list(curve.chance)
    places = dict.fromkeys((point.sweep, point.at) for point in curve.points)
    found = {(point.sweep, point.at, point.explainer): point for point in curve.points}
    rows = []
    for sweep, at in places:
        points = [found[sweep, at, explainer] for explainer in explainers]
        where = f"{at[0]}, {at[1]} px" if isinstance(at, tuple) else f"{at:g}"
        rows.append((sweep, where, *(f"{point.mean:+.3f} ({point.largest:+.3f})" for point in points)))
    rows.append(("chance", "", *(f"{value:+.3f}" for value in curve.chance.values())))
    print_table(("sweep", "at", *explainers), rows)


def _cell(figure: "Figure | None", form: Callable[[float], str]) -> str:
    if figure is None:
        return "-"
    if figure.low is None or figure.high is None:
        return form(figure.value)
    half = form((figure.high - figure.low) / 2).lstrip("+")
    return f"{form(figure.value)} ± {half}"
