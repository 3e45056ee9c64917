"""What graphs answer with, as functions of a network and tensors: a tracer runs them once, on made-up tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from keylock.errors import ModelError
from keylock.explainers import Explainer, explain_many
from keylock.export.gradient_sum_pushdown import sum_rows

__all__ = ["explain", "explain_all", "predict", "sum_gradients"]


def predict(network: nn.Module, image: Tensor, num_classes: int) -> Tensor:
    """Return the logits (batch, num_classes) of images (batch, C, H, W).

    Raises:
        ModelError: The network has another number of classes.
    """
    logits: Tensor = network(image)
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise ModelError(
            f"the network answers with logits of shape (batch, {', '.join(map(str, logits.shape[1:]))}), "
            f"but {num_classes} classes were named; name as many classes as it has logits"
        )
    return logits


def explain(
    network: nn.Module, explainer: Explainer, image: Tensor, target: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Return logits and maps (batch, h, w) for targets (batch,), of which -1 stands for the predicted class."""
    explained = explainer.explain(network, image, _classes(network, image, target, num_classes))
    return explained.logits, explained.maps.float()


def explain_all(
    network: nn.Module, explainers: Sequence[Explainer], image: Tensor, target: Tensor, num_classes: int
) -> tuple[Tensor, ...]:
    """Return logits, and maps as `explain` does for each of several explainers."""
    targets = _classes(network, image, target, num_classes)
    logits, maps = explain_many(network, explainers, image, targets)
    return logits, *(maps[explainer.name].float() for explainer in explainers)


def _classes(network: nn.Module, image: Tensor, target: Tensor, num_classes: int) -> Tensor:
    # This forward pass and the explainer's own become one when equal nodes are merged.
    return torch.where(target < 0, predict(network, image, num_classes).argmax(1), target)


def sum_gradients(network: nn.Module, image: Tensor, target: Tensor, share: Tensor, num_classes: int) -> Tensor:
    """Return `share` (images, batch) times the gradients of the logits of targets (batch,), none of them -1."""
    with torch.enable_grad():
        rows = image.detach().requires_grad_()
        logits = predict(network, rows, num_classes)
        (gradient,) = torch.autograd.grad(logits.gather(1, target.unsqueeze(1)).sum(), rows)
    return sum_rows(share, gradient)
