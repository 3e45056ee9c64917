"""The figures of an evaluation as tables, for whoever prints or shows them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from keylock.bundle.manifest import Figure
from keylock.evaluation.report import Evaluation

__all__ = ["INPUTS", "FigureRow", "FigureTable", "map_tables", "prediction_table"]

INPUTS = {
    "reference": "reference",
    "keyed": "keyed",
    "keyless": "keyless",
    "wrong_key": "wrong key",
    "flipped_key": "flipped key",
    "chance": "chance",
    "random": "random map",
}
"""What is compared, by the names in figures, in the order of rows."""

_PREDICTIONS = {"accuracy": "accuracy", "agreement": "agreement"}
_MAPS: dict[str, tuple[dict[str, str], Callable[[float], str]]] = {
    "similarity to the reference map": (
        {"pcc": "PCC", "ssim": "SSIM", "spearman": "Spearman", "top_overlap": "top 10 %"},
        "{:+.3f}".format,
    ),
    "maps without contrast": ({"constant": "share of images"}, "{:.1%}".format),
    "where maps point": ({"energy": "energy in object", "pointing": "pointing game"}, "{:.3f}".format),
    "faithfulness": (
        {
            "deletion": "deletion",
            "insertion": "insertion",
            "deletion_by_reference": "deletion (reference)",
            "insertion_by_reference": "insertion (reference)",
        },
        "{:.3f}".format,
    ),
}


class FigureRow(NamedTuple):
    """One row.

    Attributes:
        names: What stands before the figures.
        figures: One for each column; None where nothing was measured.
    """

    names: tuple[str, ...]
    figures: tuple[Figure | None, ...]


class FigureTable(NamedTuple):
    """Figures of one kind.

    Attributes:
        title: What they are.
        header: Titles of all columns.
        rows: The rows.
        form: Writes a number.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[FigureRow, ...]
    form: Callable[[float], str]


def prediction_table(evaluation: Evaluation) -> FigureTable:
    """Return how well the model predicts, a row for each input."""
    figures = evaluation.values()
    rows = tuple(
        FigureRow((title,), tuple(figures.get(f"{name}/{kind}") for name in _PREDICTIONS))
        for kind, title in INPUTS.items()
        if f"accuracy/{kind}" in figures
    )
    return FigureTable("predictions", ("input", *_PREDICTIONS.values()), rows, "{:.1%}".format)


def map_tables(evaluation: Evaluation) -> tuple[FigureTable, ...]:
    """Return how good maps are, a row for each explainer and input; kinds that were not measured are left out."""
    figures, locked = evaluation.values(), set(evaluation.labels(locked=True))
    tables = []
    for title, (columns, form) in _MAPS.items():
        rows = tuple(
            FigureRow(
                (label if label in locked else f"{label} (unseen)", INPUTS[kind]),
                _figures(figures, columns, kind, label),
            )
            for label in evaluation.labels()
            for kind in INPUTS
            if any(_figures(figures, columns, kind, label))
        )
        if rows:
            tables.append(FigureTable(title, ("map", "input", *columns.values()), rows, form))
    return tuple(tables)


def _figures(
    figures: Mapping[str, Figure], columns: Mapping[str, str], kind: str, label: str
) -> tuple[Figure | None, ...]:
    return tuple(figures.get(f"{name}/{kind}/{label}") for name in columns)
