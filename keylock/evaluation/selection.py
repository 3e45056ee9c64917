"""Which explainers to measure: those that were locked, and all others that the architecture takes."""

from collections.abc import Mapping
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor, nn

from keylock.errors import InputError, ModelError
from keylock.explainers import EXPLAINERS, Explainer, explainer_kind, make, make_for
from keylock.models import TargetLayers, find_layers

__all__ = ["Selection", "select"]

_MOST = {"steps": 16, "samples": 200, "masks": 200}
"""The most that methods that run a model many times are given of what they have by default."""


class Selection(NamedTuple):
    """Explainers by the label their figures carry.

    Attributes:
        locked: Those of the bundle.
        unseen: Others. `grad_cam@LAYER` is Grad-CAM at another layer than the one that was locked.
        skipped: For each explainer that the model does not take, why.
    """

    locked: dict[str, Explainer]
    unseen: dict[str, Explainer]
    skipped: dict[str, str]


def select(
    module: nn.Module,
    locked: Mapping[str, Explainer],
    example: Tensor,
    *,
    names: tuple[str, ...] | None = None,
    unseen: bool = False,
) -> Selection:
    """Choose explainers for a locked model.

    Args:
        module: The locked classifier.
        locked: The explainers of its bundle, with the parameters they were locked with.
        example: Two preprocessed images or more (batch, channels, height, width), to try explainers on.
        names: Take these alone: names of locked explainers or of any other.
        unseen: Without `names`: take every explainer that was not locked too, and Grad-CAM at a layer in the middle.

    Raises:
        UnknownNameError: A name is that of no explainer.
        InputError: No explainer is left, or a method of Captum needs more than its name.
        LayerNotFoundError: An explainer that was named does not fit the model.
    """
    for name in names or ():
        if name not in locked:
            explainer_kind(name, others=locked)
    chosen = {name: explainer for name, explainer in locked.items() if names is None or name in names}
    layers = find_layers(module, example[:2])
    others: dict[str, Explainer] = {}
    skipped: dict[str, str] = {}
    if names is not None:
        others = {name: _made(layers, name) for name in names if name not in locked}
    elif unseen:
        others, skipped = _all_others(module, locked, layers, example)
    if not chosen and not others:
        raise InputError(f"name at least one explainer of {', '.join(EXPLAINERS)}")
    return Selection(chosen, others, skipped)


def _all_others(
    module: nn.Module, locked: Mapping[str, Explainer], layers: TargetLayers, example: Tensor
) -> tuple[dict[str, Explainer], dict[str, str]]:
    found: dict[str, Explainer] = {}
    skipped: dict[str, str] = {}
    targets = torch.full((2,), -1, device=example.device)
    for name in EXPLAINERS:
        if name in locked:
            continue
        try:
            explainer = _made(layers, name)
            explainer.explain(module, example[:2], targets)
        except (InputError, ModelError) as error:
            skipped[name] = error.message
        else:
            found[name] = explainer
    middle = layers.stack[len(layers.stack) // 2]
    if "grad_cam" in locked and locked["grad_cam"].parameters.get("layer") != middle:
        found[f"grad_cam@{middle}"] = make("grad_cam", layer=middle)
    return found, skipped


def _made(layers: TargetLayers, name: str) -> Explainer:
    """Make an explainer for these layers; one that runs the model many times gets cheap settings."""
    [explainer] = make_for(layers, [name])
    settings = {entry.name: getattr(explainer, entry.name) for entry in fields(explainer)}  # type: ignore[arg-type]
    cheap = {setting: most for setting, most in _MOST.items() if settings.get(setting, 0) > most}
    return make(name, **{**settings, **cheap}) if cheap else explainer
