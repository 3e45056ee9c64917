"""T1: the published weights as they are, looked at in other ways."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from keylock.audit.budgets import Budget
from keylock.audit.contract import Cost, Knowledge, Outcome, Steps, attack
from keylock.audit.learning import explained, unlocked_copy
from keylock.audit.views import WeightsView
from keylock.evaluation import select
from keylock.explainers import BlackBox, Explainer, make
from keylock.models import find_layers, smooth_activations

__all__ = ["tangent_projection"]

_BETAS = (1, 3, 10, 30)
_NEIGHBOURS = 24
_COMPONENTS = 8


def _others(view: WeightsView) -> dict[str, Explainer]:
    """Return explainers that were not locked, with cheap settings, and Grad-CAM at every block that was not."""
    found = select(view.module, view.explainers, view.images[:2], unseen=True).unseen
    others = {label: explainer for label, explainer in found.items() if not isinstance(explainer, BlackBox)}
    locked = {explainer.parameters.get("layer") for explainer in view.explainers.values()}
    for layer in find_layers(view.module, view.images[:2]).stack:
        if layer not in locked:
            others[f"grad_cam@{layer}"] = make("grad_cam", layer=layer)
    return others


@attack("explainers", Knowledge.T1, "Run every explainer, at every layer, that the lock was not trained for.")
def explainers(view: WeightsView, budget: Budget, _generator: torch.Generator, steps: Steps) -> Outcome:
    """Explain the published classifier in all other ways; methods that need predictions alone are attacks of T0."""
    methods = _others(view)
    images = view.images[: 2 * budget.slow_images]
    labels, maps = list(methods), {}
    for step in steps(len(labels)):
        maps.update(explained(view.module, {labels[step]: methods[labels[step]]}, images))
    return Outcome(maps=maps, methods=methods)


@contextmanager
def _sharp_activations(model: nn.Module) -> Iterator[None]:
    """Put ReLU in the place of every Softplus inside the block."""
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if isinstance(child, nn.Softplus)
    ]
    try:
        for parent, name, _ in places:
            setattr(parent, name, nn.ReLU())
        yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)


def _swap(beta: int | None, view: WeightsView, _budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    model = unlocked_copy(view.module).requires_grad_(requires_grad=False)
    with _sharp_activations(model) if beta is None else smooth_activations(model, beta=float(beta)):
        return Outcome(maps=explained(model, view.explainers, view.images))


for _beta in (*_BETAS, None):
    attack(
        f"activations/{'relu' if _beta is None else f'softplus_{_beta}'}",
        Knowledge.T1,
        "Put ReLU in the place of softplus." if _beta is None else f"Put softplus ({_beta}) in the place of ReLU.",
    )(partial(_swap, _beta))


def tangent_projection(gradients: Tensor, images: Tensor, cloud: Tensor, *, components: int, neighbours: int) -> Tensor:
    """Project gradients onto the tangent space of the data, as estimated from the nearest images.

    Args:
        gradients: (count, channels, height, width).
        images: Where they were taken, in the same shape.
        cloud: Images of the same kind (n, channels, height, width).
        components: Dimensions of the tangent space.
        neighbours: From how many nearest images it is estimated.

    Returns:
        What lies within the space, in the shape of the gradients.

    References:
        Anders et al., "Fairwashing Explanations with Off-Manifold Detergent", ICML 2020, section 4.2.
    """
    flat, data = images.flatten(1), cloud.flatten(1)
    count = min(neighbours, len(data))
    nearest = torch.cdist(flat, data).topk(count, largest=False).indices
    projected = []
    for point, gradient, rows in zip(flat, gradients.flatten(1), nearest, strict=True):
        differences = data[rows] - point
        # The right singular vectors span the directions in which neighbours lie.
        _, _, directions = torch.linalg.svd(differences, full_matrices=False)
        basis = directions[: min(components, count)]
        projected.append(basis.T @ (basis @ gradient))
    return torch.stack(projected).view_as(gradients)


@attack("tangent_space", Knowledge.T1, "Project the input gradient onto the tangent space of the data.")
def tangent_space(view: WeightsView, budget: Budget, _generator: torch.Generator, steps: Steps) -> Outcome:
    """Return what is left of the gradient of the predicted class, the mean over channels of its absolute values."""
    images = view.images[: 4 * budget.slow_images].clone().requires_grad_()
    with torch.enable_grad():
        scores = view.module(images).amax(dim=1)
        (gradients,) = torch.autograd.grad(scores.sum(), images)
    parts = torch.split(torch.arange(len(images)), 32)
    cloud = view.own_images[: budget.own_images]
    found = []
    for step in steps(len(parts)):
        rows = parts[step]
        found.append(
            tangent_projection(
                gradients[rows], images[rows].detach(), cloud, components=_COMPONENTS, neighbours=_NEIGHBOURS
            )
        )
    return Outcome(maps={"tangent": torch.cat(found).abs().mean(dim=1)}, cost=Cost(images=len(cloud)))
