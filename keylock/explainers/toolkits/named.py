"""Captum's attributions as explainers with names of their own: `captum:DeepLift`, `captum:IntegratedGradients`.

They are called as the table of `captum_methods` says. Captum shows a map where a method does not suit a network, too;
what is known to be wrong is refused here.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, nn

from keylock.errors import InputError, ModelError, UnknownNameError
from keylock.explainers.base import Explainer, Family, MultiPass
from keylock.explainers.lrp import LRP
from keylock.explainers.passes import Run
from keylock.explainers.toolkits.base import Reads, ask
from keylock.explainers.toolkits.captum_methods import CAPTUM
from keylock.models import TargetLayers

__all__ = ["CAPTUM_NAMES", "PREFIX", "captum_explainer"]

PREFIX: Final = "captum:"

_PERTURBING: Final = {
    *("Occlusion", "FeatureAblation", "FeaturePermutation", "ShapleyValueSampling", "ShapleyValues"),
    *("Lime", "KernelShap", "LayerFeatureAblation", "LayerFeaturePermutation"),
}
_FITTED: Final = {"Lime", "KernelShap"}
_RECTIFIED: Final = {"GuidedBackprop", "Deconvolution", "GuidedGradCam"}
_RELEVANCE: Final = 1e-9
"""The epsilon that Captum's LRP divides with by default."""
_MOST_RELEVANCE: Final = 1.1
"""Times what keylock's own LRP gives: where branches are added Captum gives each of them everything."""

CAPTUM_NAMES: Final = tuple(f"{PREFIX}{name}" for name in CAPTUM.methods if not name.startswith("Neuron"))
"""Every name there is; methods about a neuron need one to be chosen."""


@dataclass(frozen=True)
class CaptumAtInput(MultiPass):
    """A method of Captum that makes its map at the input.

    Its map is the size of the sum over channels of what Captum attributes to each pixel (batch, height, width).
    Random numbers are the same at every call.
    """

    family = Family.GRADIENT
    differentiable = False
    compiled = False
    method = ""

    def maps_in(self, run: Run) -> Tensor:
        """Return the maps (batch, h, w).

        Raises:
            InputError: Captum refuses the network.
            ModelError: Captum's map of this network would be another method's, or no map.
        """
        check = _CHECKS.get(self.method)
        if check is not None:
            check(self.name, run)
        maps = self._attributed(run)
        if not bool(torch.isfinite(maps).all()):
            raise ModelError(f"{self.name} gives values that are no numbers for this network: take another one")
        return maps.relu()

    def _attributed(self, run: Run) -> Tensor:
        return ask(run, CAPTUM.methods[self.method], self.name, ())


@dataclass(frozen=True)
class CaptumAtLayer(CaptumAtInput):
    """A method of Captum that looks at a layer.

    Its map is the positive part of the sum over the layer's channels of what Captum attributes to them, in the layer's
    resolution; `GuidedGradCam` alone has the image's.

    Attributes:
        layer: Name of a layer with output (batch, channels, h, w), or (batch, tokens, channels) in a transformer.
    """

    layer: str

    @classmethod
    def defaults(cls, layers: TargetLayers) -> dict[str, Any]:
        """Look at the layer that Grad-CAM looks at."""
        return {"layer": layers.last}

    @property
    def layers(self) -> tuple[str, ...]:
        """The layer, which is checked in the shared pass."""
        return (self.layer,)

    def _attributed(self, run: Run) -> Tensor:
        return ask(run, CAPTUM.methods[self.method], self.name, (self.layer,))


def captum_explainer(name: str) -> type[Explainer]:
    """Return the explainer of a name that begins with `captum:`.

    Raises:
        InputError: Captum has the method, and it explains no image or needs an argument that a name cannot give.
        UnknownNameError: Captum has no such method.
    """
    method = name.removeprefix(PREFIX)
    if method in CAPTUM.left_out:
        raise InputError(f"{name} is no explainer of images: in Captum it is {CAPTUM.left_out[method]}")
    if method in CAPTUM.methods and name not in CAPTUM_NAMES:
        raise InputError(
            f"{name} needs a neuron (neuron_selector), which a name cannot give: "
            "in Python, give Captum the model that keylock.load_bundle returns"
        )
    if name not in CAPTUM_NAMES:
        raise UnknownNameError("explainer", name, CAPTUM_NAMES)
    return _kind(method)


@cache
def _kind(method: str) -> type[Explainer]:
    base = CaptumAtInput if CAPTUM.methods[method].reads is Reads.INPUT else CaptumAtLayer
    family = Family.PERTURBATION if method in _PERTURBING else Family.CAM if method == "LayerGradCam" else base.family
    about = {"name": f"{PREFIX}{method}", "method": method, "family": family, "__doc__": base.__doc__}
    return type(f"Captum{method}", (base,), {**about, "__module__": __name__})


def _check_rectifiers(name: str, run: Run) -> None:
    if not any(isinstance(module, nn.ReLU) for module in run.network.modules()):
        raise ModelError(
            f"{name} has a rule for nn.ReLU alone, and this network has none, so that its map would be the "
            "plain gradient's: take guided_backprop, which sees every activation"
        )


def _check_fitting(name: str, _run: Run) -> None:
    if importlib.util.find_spec("sklearn") is None:
        raise InputError(f"{name} needs scikit-learn: pip install '.[captum]'").for_missing_extra()


def _check_relevance(name: str, run: Run) -> None:
    """Compare what Captum's LRP adds up to at the input with what keylock's own does, which knows additions."""
    found = ask(run, CAPTUM.methods["LRP"], name, ())
    own = LRP(epsilon=_RELEVANCE).maps_in(run)
    if not bool((found.sum(dim=(1, 2)) <= _MOST_RELEVANCE * own.sum(dim=(1, 2))).all()):
        raise ModelError(
            f"{name} does not conserve relevance on this network, as on all where branches are added: "
            "take lrp, which does"
        )


_CHECKS: Final[Mapping[str, Callable[[str, Run], None]]] = {
    **dict.fromkeys(_RECTIFIED, _check_rectifiers),
    **dict.fromkeys(_FITTED, _check_fitting),
    **dict.fromkeys(("LRP", "LayerLRP"), _check_relevance),
}
