"""The figures of a lock as tables: accuracy by input, and for each explainer fidelity and leakage beside chance."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from keylock.cli._console import print_table

if TYPE_CHECKING:
    from keylock.bundle import Figure

__all__ = ["print_figures"]

_KINDS = (("reference", "reference"), ("keyed", "keyed"), ("keyless", "keyless"), ("wrong_key", "wrong key"))
_SIMILARITIES = (
    ("fidelity/{}", "fidelity"),
    ("leakage/keyless/{}", "keyless leakage"),
    ("leakage/wrong_key/{}", "wrong-key leakage"),
    ("leakage/retired/{}", "retired key"),
    ("chance/{}", "chance"),
    ("constant/reference/{}", "constant true maps"),
    ("constant/keyed/{}", "constant keyed maps"),
)
_ENERGIES = (
    ("energy/reference/{}", "reference"),
    ("energy/keyed/{}", "keyed"),
    ("energy/keyless/{}", "keyless"),
    ("energy/wrong_key/{}", "wrong key"),
    ("object_area", "object's area"),
)


def print_figures(figures: "Iterable[Figure]", explainers: Iterable[str]) -> None:
    """Print what was measured.

    Args:
        figures: As `keylock.evaluation.measure` names them; those that are missing are left out.
        explainers: Their names, in order.
    """
    values = {figure.name: figure.value for figure in figures}
    names = tuple(explainers)
    rows = [(title, f"{values[f'accuracy/{kind}']:.1%}") for kind, title in _KINDS if f"accuracy/{kind}" in values]
    print_table(("input", "accuracy"), rows)
    _print_columns("map", _SIMILARITIES, values, names, "{:+.3f}")
    _print_columns("energy in object", _ENERGIES, values, names, "{:.1%}")


def _print_columns(
    title: str, columns: tuple[tuple[str, str], ...], values: dict[str, float], names: tuple[str, ...], form: str
) -> None:
    shown = [(key, head) for key, head in columns if any(key.format(name) in values for name in names)]
    if shown:
        print()  # noqa: T201 - an empty line between two tables
        rows = [(name, *(_cell(values.get(key.format(name)), form) for key, _ in shown)) for name in names]
        print_table((title, *(head for _, head in shown)), rows)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
