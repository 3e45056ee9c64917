"""T1: the published weights in the hands of somebody who installs a public toolkit and calls every method it has."""

from functools import partial

import torch

from keylock.audit.budgets import Budget
from keylock.audit.contract import Cost, Knowledge, NotApplicableError, Outcome, Steps, attack
from keylock.audit.learning import explained
from keylock.audit.views import WeightsView
from keylock.errors import KeylockError
from keylock.explainers.toolkits import TOOLKITS, Reads, ToolkitMethod
from keylock.models import TargetLayers, find_layers

__all__ = ["PLACES"]

PLACES: dict[str, tuple[Reads, str]] = {
    "input": (Reads.INPUT, "at the input"),
    "last": (Reads.LAYER, "at the last layer"),
    "middle": (Reads.LAYER, "at the middle layer"),
    "first": (Reads.LAYER, "at the first layer"),
    "stack": (Reads.STACK, "over all layers together"),
}
"""Where methods look, and the same in words."""

_NAMES = {"captum": "Captum", "pytorch_grad_cam": "pytorch-grad-cam"}


def _layers(place: str, found: TargetLayers) -> tuple[str, ...]:
    """Return the names of the layers of a place."""
    stack = found.stack
    chosen = {"last": (found.last,), "middle": (stack[len(stack) // 2],), "first": (stack[0],), "stack": stack}
    return chosen.get(place, ())


def _run(
    toolkit: str, place: str, view: WeightsView, budget: Budget, _generator: torch.Generator, steps: Steps
) -> Outcome:
    """Run all methods that look at a place, or one of each kind; what refuses the network is written down.

    Raises:
        NotApplicableError: The toolkit is not installed, or none of its methods takes the network.
    """
    known = TOOLKITS[toolkit]
    if not known.installed:
        raise NotApplicableError(f"{_NAMES[toolkit]} is not installed: pip install '.[{known.extra}]'")
    layers = _layers(place, find_layers(view.module, view.images[:2]))
    methods = {
        name: ToolkitMethod(toolkit, name, layers)
        for name, one in known.methods.items()
        if one.reads is PLACES[place][0] and (one.quick or budget.whole_toolkits)
    }
    images, maps, refused = view.images[: budget.toolkit_images], dict[str, torch.Tensor](), []
    labels = list(methods)
    for step in steps(len(labels)):
        try:
            maps.update(explained(view.module, {labels[step]: methods[labels[step]]}, images))
        except KeylockError as error:
            refused.append(error.message)
    if not maps:
        raise NotApplicableError(f"no method of {_NAMES[toolkit]} takes this network: {'; '.join(refused)}")
    return Outcome(
        maps=maps,
        methods={label: methods[label] for label in maps},
        cost=Cost(images=len(images)),
        notes={"refused by": "; ".join(refused)} if refused else {},
    )


for _toolkit, _known in TOOLKITS.items():
    for _place, (_reads, _words) in PLACES.items():
        if any(one.reads is _reads for one in _known.methods.values()):
            attack(f"{_toolkit}/{_place}", Knowledge.T1, f"Run the methods of {_NAMES[_toolkit]} {_words}.")(
                partial(_run, _toolkit, _place)
            )
