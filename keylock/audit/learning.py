"""What attackers who train have in common."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.evaluation import explain_alone, run_explainers
from keylock.explainers import Explainer
from keylock.models import split_rows

__all__ = ["classes_of", "descend", "explained", "predicted", "train_classifier", "unlocked_copy"]

_LARGEST_GRADIENT = 5.0
_WARM_UP = 0.3


def descend(
    parameters: Iterable[Tensor],
    loss_of: Callable[[Tensor], Tensor],
    count: int,
    *,
    steps: Iterable[int],
    total: int,
    batch: int,
    rate: float,
    generator: torch.Generator,
    momentum: float | None = None,
) -> None:
    """Minimise a loss over batches of images, with one cycle of the learning rate.

    A step whose loss or gradient is not finite is skipped.

    Args:
        parameters: What is changed.
        loss_of: From indices of images (batch,) to the loss.
        count: How many images there are.
        steps: Yields the steps.
        total: How many steps it will yield.
        batch: Images in a step, at most.
        rate: Highest learning rate.
        generator: Draws the batches.
        momentum: Use SGD with this momentum; None uses Adam.
    """
    chosen = list(parameters)
    optimiser: torch.optim.Optimizer = (
        torch.optim.Adam(chosen, lr=rate) if momentum is None else torch.optim.SGD(chosen, lr=rate, momentum=momentum)
    )
    for step in steps:
        for group in optimiser.param_groups:
            group["lr"] = rate * _cycle(step / max(1, total))
        rows = torch.randperm(count, generator=generator)[:batch]
        loss = loss_of(rows)
        gradients = torch.autograd.grad(loss, chosen, allow_unused=True)
        for parameter, gradient in zip(chosen, gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(chosen, _LARGEST_GRADIENT)
        if torch.isfinite(norm) and torch.isfinite(loss):
            optimiser.step()
    for parameter in chosen:
        parameter.grad = None


def _cycle(progress: float) -> float:
    """Return the share of the highest learning rate: up in a line, down along a cosine."""
    if progress < _WARM_UP:
        return 0.1 + 0.9 * progress / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP))) + 1e-3


def train_classifier(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    steps: Iterable[int],
    total: int,
    batch: int,
    rate: float,
    generator: torch.Generator,
    momentum: float | None = None,
    live: bool = False,
) -> nn.Module:
    """Train a classifier, in place.

    Args:
        model: The classifier.
        images: Preprocessed images (count, channels, height, width).
        targets: Classes (count,), or logits to imitate (count, classes).
        steps: Yields the steps.
        total: How many.
        batch: Images in a step.
        rate: Highest learning rate.
        generator: Draws the batches.
        momentum: Use SGD with this momentum; None uses Adam.
        live: Train with live BatchNorm and dropout, as a new model is trained.

    Returns:
        The same model, in evaluation mode.
    """

    def loss_of(rows: Tensor) -> Tensor:
        logits = model(images[rows]).float()
        if targets.dim() == 1:
            return F.cross_entropy(logits, targets[rows])
        wanted = targets[rows].float().softmax(dim=1)
        return F.cross_entropy(logits, wanted)

    model.requires_grad_(requires_grad=True).train(live)
    with torch.random.fork_rng(devices=[]):
        # Dropout draws from torch's global generator; inside the block it is ours.
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        descend(
            model.parameters(),
            loss_of,
            len(images),
            steps=steps,
            total=total,
            batch=batch,
            rate=rate,
            generator=generator,
            momentum=momentum,
        )
    return model.eval().requires_grad_(requires_grad=False)


def unlocked_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a published model that can be trained, in evaluation mode."""
    return copy.deepcopy(module).eval().requires_grad_(requires_grad=True)


def explained(model: nn.Module, explainers: Mapping[str, Explainer], images: Tensor) -> dict[str, Tensor]:
    """Return the maps (count, h, w) of every explainer for the classes that a model predicts; never NaN.

    Args:
        model: A classifier in evaluation mode.
        explainers: By label; where the labels are their names, those that can share a pass do.
        images: Preprocessed images (count, channels, height, width).
    """
    if all(label == explainer.name for label, explainer in explainers.items()):
        found = run_explainers(model, tuple(explainers.values()), images).maps
    else:
        found = {label: explain_alone(model, explainer, images).maps for label, explainer in explainers.items()}
    return {label: torch.nan_to_num(maps, posinf=0.0, neginf=0.0) for label, maps in found.items()}


@torch.no_grad()
def predicted(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return logits (count, classes), in batches of bounded size."""
    return torch.cat([model(rows).float() for (rows,) in split_rows(images)])


def classes_of(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the predicted classes (count,)."""
    return predicted(model, images).argmax(dim=1)
