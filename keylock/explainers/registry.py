"""Explainers by name. Adding one is one entry in `EXPLAINERS` and one row in the conformance table of the tests."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from keylock.errors import InputError, UnknownNameError
from keylock.explainers.attention_rollout import AttentionRollout
from keylock.explainers.base import Explainer
from keylock.explainers.black_box import LIME, RISE, KernelSHAP, Occlusion
from keylock.explainers.grad_cam import GradCAM
from keylock.explainers.grad_cam_pp import GradCAMPlusPlus
from keylock.explainers.gradient import Gradient
from keylock.explainers.guided_backprop import GuidedBackprop
from keylock.explainers.input_x_gradient import InputXGradient
from keylock.explainers.integrated_gradients import IntegratedGradients
from keylock.explainers.layer_cam import LayerCAM
from keylock.explainers.lrp import LRP
from keylock.explainers.smooth_grad import SmoothGrad
from keylock.explainers.toolkits.named import PREFIX, captum_explainer
from keylock.explainers.visual_backprop import VisualBackProp
from keylock.iterative.registry import as_parameters
from keylock.models import TargetLayers

__all__ = ["ALL", "EXPLAINERS", "check_lockable", "expand_names", "explainer_kind", "make", "make_for"]

EXPLAINERS: dict[str, type[Explainer]] = {
    kind.name: kind
    for kind in (
        *(GradCAM, GradCAMPlusPlus, LayerCAM),
        *(Gradient, InputXGradient, GuidedBackprop, SmoothGrad, IntegratedGradients, LRP),
        VisualBackProp,
        AttentionRollout,
        *(Occlusion, RISE, LIME, KernelSHAP),
    )
}

ALL = "all"
"""The word that stands for one explainer of each kind of maps, and for all that read predictions alone."""

_ALL_OF_THEM = (
    *(GradCAM.name, Gradient.name, VisualBackProp.name),
    *(Occlusion.name, RISE.name, LIME.name, KernelSHAP.name),
)


def expand_names(names: Iterable[str]) -> tuple[str, ...]:
    """Check names of explainers to lock; `all` stands for maps of three kinds and everything that reads predictions.

    It is meant for convolutional networks: `grad_cam`, `gradient` and `visual_backprop` are locked by their maps,
    `occlusion`, `rise`, `lime` and `kernel_shap` by the predictions they read.

    Raises:
        UnknownNameError: No explainer has one of the names.
        InputError: A name comes twice, or there is none whose own maps can be locked.
    """
    chosen = [found for name in names for found in (_ALL_OF_THEM if name == ALL else (name,))]
    check_lockable([(name, explainer_kind(name, others=(ALL,)).differentiable) for name in chosen])
    return tuple(chosen)


def explainer_kind(name: str, *, others: Iterable[str] = ()) -> type[Explainer]:
    """Return the class of an explainer: one of `EXPLAINERS`, or `captum:METHOD`, any attribution of Captum.

    Args:
        name: Its name.
        others: What else may be said in its place, for the error.

    Raises:
        UnknownNameError: No explainer has that name.
        InputError: It is a method of Captum that explains no image, or needs an argument that a name cannot give.
    """
    if name.startswith(PREFIX):
        return captum_explainer(name)
    if name not in EXPLAINERS:
        raise UnknownNameError("explainer", name, [*EXPLAINERS, *others, f"{PREFIX}METHOD"])
    return EXPLAINERS[name]


def check_lockable(chosen: Sequence[tuple[str, bool]]) -> None:
    """Return when a lock can be trained on explainers, given as names and whether gradients lead through them.

    Raises:
        InputError: A name comes twice, or there is none whose own maps can be locked.
    """
    if not any(differentiable for _, differentiable in chosen) or len(set(chosen)) != len(chosen):
        lockable = [name for name, kind in EXPLAINERS.items() if kind.differentiable]
        raise InputError(f"name each explainer once, and at least one of {', '.join(lockable)}")


def make(name: str, **parameters: Any) -> Explainer:  # noqa: ANN401 - each explainer checks its own parameters
    """Make an explainer from its name and JSON parameters.

    Raises:
        UnknownNameError: No explainer has that name.
        InputError: It is one of Captum that a name does not suffice for, or does not take these parameters.
    """
    kind, given = explainer_kind(name), as_parameters(parameters)
    try:
        explainer: Explainer = kind(**given)
    except TypeError as error:
        taken = ", ".join(entry.name for entry in fields(kind)) or "no parameters"  # type: ignore[arg-type]
        raise InputError(f"the explainer {name!r} takes {taken}, not {', '.join(given) or 'none'}") from error
    return explainer


def make_for(layers: TargetLayers, names: Iterable[str | Explainer]) -> tuple[Explainer, ...]:
    """Make explainers for a model whose layers are known; those already made pass through.

    Raises:
        UnknownNameError: No explainer has one of the names.
        InputError: Two explainers have the same name.
        LayerNotFoundError: The model has not the layers that one of them reads.
    """
    made = tuple(_make_default(layers, item) if isinstance(item, str) else item for item in names)
    chosen = [explainer.name for explainer in made]
    if not made or len(set(chosen)) != len(chosen):
        raise InputError(f"name each explainer once, and at least one of {', '.join(EXPLAINERS)}")
    return made


def _make_default(layers: TargetLayers, name: str) -> Explainer:
    return make(name, **explainer_kind(name).defaults(layers))
