"""Loops by the names of their explainers."""

from dataclasses import fields
from typing import Any

from keylock.errors import InputError, UnknownNameError
from keylock.iterative.base import Loop
from keylock.iterative.integrated_gradients import IntegratedGradientsLoop
from keylock.iterative.kernel_shap import KernelSHAPLoop
from keylock.iterative.lime import LIMELoop
from keylock.iterative.occlusion import OcclusionLoop
from keylock.iterative.rise import RISELoop
from keylock.iterative.smooth_grad import SmoothGradLoop

__all__ = ["LOOPS", "as_parameters", "make_loop"]

LOOPS: dict[str, type[Loop]] = {
    kind.name: kind
    for kind in (SmoothGradLoop, IntegratedGradientsLoop, OcclusionLoop, RISELoop, LIMELoop, KernelSHAPLoop)
}


def make_loop(name: str, **parameters: Any) -> Loop:  # noqa: ANN401 - each loop checks its own parameters
    """Make a loop from its explainer's name and JSON parameters.

    Raises:
        UnknownNameError: No loop has that name.
        InputError: The loop does not take these parameters.
    """
    if name not in LOOPS:
        raise UnknownNameError("loop", name, LOOPS)
    try:
        return LOOPS[name](**as_parameters(parameters))
    except TypeError as error:
        taken = ", ".join(entry.name for entry in fields(LOOPS[name]))  # type: ignore[arg-type]
        raise InputError(f"the explainer {name!r} takes {taken}, not {', '.join(parameters) or 'none'}") from error


def as_parameters(values: dict[str, Any]) -> dict[str, Any]:
    """Return JSON values as parameters, in which lists are tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
