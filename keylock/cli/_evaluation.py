"""An evaluation as tables: predictions, similarity of maps, localisation, faithfulness, the gate."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import typer

from keylock.cli._console import print_table

if TYPE_CHECKING:
    from keylock.bundle import Figure
    from keylock.evaluation import Evaluation, GateCurve

__all__ = ["print_evaluation"]

_TITLES = {
    "reference": "reference",
    "keyed": "keyed",
    "keyless": "keyless",
    "wrong_key": "wrong key",
    "flipped_key": "flipped key",
    "chance": "chance",
    "random": "random map",
}
_PREDICTIONS = {"accuracy": "accuracy", "agreement": "agreement"}
_SIMILARITIES = {"pcc": "PCC", "ssim": "SSIM", "spearman": "Spearman", "top_overlap": "top 10 %"}
_LOCALISATION = {"energy": "energy in object", "pointing": "pointing game"}
_FAITHFULNESS = {
    "deletion": "deletion",
    "insertion": "insertion",
    "deletion_by_reference": "deletion (reference)",
    "insertion_by_reference": "insertion (reference)",
}


def print_evaluation(evaluation: "Evaluation") -> None:
    """Print what was found; after ± stands half of the 95 % interval."""
    figures = evaluation.values()
    typer.echo(f"{evaluation.model}, {evaluation.about}; ± is half of the 95 % interval\n")
    _print_predictions(figures)
    locked = set(evaluation.labels(locked=True))
    named = [(label, label if label in locked else f"{label} (unseen)") for label in evaluation.labels()]
    for head, columns, form in (
        ("map", _SIMILARITIES, "{:+.3f}".format),
        ("map", _LOCALISATION, "{:.3f}".format),
        ("map", _FAITHFULNESS, "{:.3f}".format),
    ):
        _print_maps(head, columns, figures, named, form)
    if "object_area" in figures:
        typer.echo(f"\nthe object's share of the area: {_cell(figures['object_area'], '{:.3f}'.format)}")
    if evaluation.gate is not None:
        _print_gate(evaluation.gate)
    for name, why in evaluation.skipped.items():
        typer.echo(f"\nleft out: {name}: {why}")


def _print_predictions(figures: "Mapping[str, Figure]") -> None:
    rows = [
        (title, *(_cell(figures.get(f"{name}/{kind}"), "{:.1%}".format) for name in _PREDICTIONS))
        for kind, title in _TITLES.items()
        if f"accuracy/{kind}" in figures
    ]
    print_table(("input", *_PREDICTIONS.values()), rows)


def _print_maps(
    head: str,
    columns: Mapping[str, str],
    figures: "Mapping[str, Figure]",
    named: Iterable[tuple[str, str]],
    form: Callable[[float], str],
) -> None:
    rows = [
        (shown, title, *(_cell(figures.get(f"{name}/{kind}/{label}"), form) for name in columns))
        for label, shown in named
        for kind, title in _TITLES.items()
        if any(f"{name}/{kind}/{label}" in figures for name in columns)
    ]
    if rows:
        typer.echo()
        print_table((head, "input", *columns.values()), rows)


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
