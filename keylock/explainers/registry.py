"""Explainers by name. Adding one is one entry in `EXPLAINERS` and one row in the conformance table of the tests."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from keylock.errors import InputError, UnknownNameError
from keylock.explainers.base import Explainer
from keylock.explainers.grad_cam import GradCAM
from keylock.explainers.gradient import Gradient
from keylock.explainers.visual_backprop import VisualBackProp
from keylock.models import TargetLayers

__all__ = ["EXPLAINERS", "make", "make_for"]

EXPLAINERS: dict[str, type[Explainer]] = {kind.name: kind for kind in (GradCAM, Gradient, VisualBackProp)}


def make(name: str, **parameters: Any) -> Explainer:  # noqa: ANN401 - each explainer checks its own parameters
    """Make an explainer from its name and JSON parameters.

    Raises:
        UnknownNameError: No explainer has that name.
        InputError: The explainer does not take these parameters.
    """
    if name not in EXPLAINERS:
        raise UnknownNameError("explainer", name, EXPLAINERS)
    if isinstance(parameters.get("layers"), list):
        parameters["layers"] = tuple(parameters["layers"])
    try:
        explainer: Explainer = EXPLAINERS[name](**parameters)
    except TypeError as error:
        taken = ", ".join(entry.name for entry in fields(EXPLAINERS[name])) or "no parameters"  # type: ignore[arg-type]
        given = ", ".join(parameters) or "none"
        raise InputError(f"the explainer {name!r} takes {taken}, not {given}") from error
    return explainer


def make_for(layers: TargetLayers, names: Iterable[str | Explainer]) -> tuple[Explainer, ...]:
    """Make explainers for a model whose layers are known; those already made pass through.

    Raises:
        UnknownNameError: No explainer has one of the names.
        InputError: Two explainers have the same name.
    """
    defaults: dict[str, dict[str, Any]] = {
        GradCAM.name: {"layer": layers.last},
        VisualBackProp.name: {"layers": layers.stack},
    }
    made = tuple(make(item, **defaults.get(item, {})) if isinstance(item, str) else item for item in names)
    chosen = [explainer.name for explainer in made]
    if not made or len(set(chosen)) != len(chosen):
        raise InputError(f"name each explainer once, and at least one of {', '.join(EXPLAINERS)}")
    return made
