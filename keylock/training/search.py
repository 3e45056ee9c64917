"""An attacker in the loop: gradient search for a perturbation that moves the maps of a model, and keeps its answers.

It has what an attacker with the published weights has: no key and no reference. It looks for one perturbation for all
images, a repeated tile or one of full size, under which the maps are unlike what is shown without it, agree with each
other where there are several explainers, and the predicted classes stay. What it finds becomes a wrong key.

References:
    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, section 2.1: steps along
    the sign of the gradient, projected back into the box.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.explainers import Explainer, explain_many
from keylock.locking.key_patterns import random_signs, repeat_tiles
from keylock.locking.losses import correlation, prediction_distance
from keylock.models import added_to_inputs

__all__ = ["search_key"]

_LONGEST_STEP = 2.0
_AGREEMENT = 0.5


def search_key(
    model: nn.Module,
    explainers: Sequence[Explainer],
    images: Tensor,
    *,
    magnitude: Tensor,
    tile: int | None,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Search for a key of a model by gradients.

    Args:
        model: The classifier as it is published, in evaluation mode; its weights and their gradients stay as they are.
        explainers: What is to move; gradients lead through all of them.
        images: Preprocessed images (count, channels, height, width); the same ones serve in every step.
        magnitude: Largest height of what is added (channels, height, width): the key's, without its signs.
        tile: Side of the repeated block that is searched for, in pixels; None searches all pixels.
        steps: Gradient steps, at least 1.
        generator: Draws where the search starts; on the CPU.

    Returns:
        The perturbation (channels, height, width) at which the attacker's objective was best.
    """
    channels, size = magnitude.shape[0], (magnitude.shape[1], magnitude.shape[2])
    logits, shown = explain_many(model, explainers, images, torch.full((len(images),), -1, device=images.device))
    targets = logits.argmax(dim=1)

    def objective(tiles: Tensor) -> Tensor:
        with added_to_inputs(model, repeat_tiles(tiles, size) * magnitude):
            moved_logits, moved = explain_many(model, explainers, images, targets, create_graph=True)
        return _unlike(moved, shown) + prediction_distance(moved_logits, logits).mean()

    signs = random_signs(1, channels, tile or max(size), generator=generator).to(images.device)
    # Inside the box there are gradients in all directions. Near no change at all both ways from it look alike, so the
    # better of a start and its negative is taken.
    start = 0.5 * (signs if tile else signs[:, :, : size[0], : size[1]])
    found = min((start, -start), key=lambda tiles: float(objective(tiles).detach()))
    best, lowest = found, float("inf")
    for step in range(steps):
        found.requires_grad_()
        loss = objective(found)
        (gradient,) = torch.autograd.grad(loss, found)
        found = found.detach()
        value = float(loss.detach())
        if value < lowest:
            best, lowest = found, value
        # Steps shrink from a size that crosses the box in a few of them to a tenth of it.
        length = _LONGEST_STEP / min(steps, 10) * (1 - 0.9 * step / steps)
        found = (found - length * gradient.sign()).clamp(-1, 1)
    return (repeat_tiles(best, size) * magnitude).squeeze(0)


def _unlike(moved: dict[str, Tensor], shown: dict[str, Tensor]) -> Tensor:
    """Return how much moved maps are like those shown, and unlike each other: one number, to be made small."""
    like = torch.stack([correlation(maps, shown[name]).mean() for name, maps in moved.items()]).mean()
    pairs = [_correlation_of_any_size(first, second).mean() for first, second in combinations(moved.values(), 2)]
    return like - _AGREEMENT * torch.stack(pairs).mean() if pairs else like


def _correlation_of_any_size(first: Tensor, second: Tensor) -> Tensor:
    """Correlate pairs of maps (batch, h, w) at the smaller of their resolutions, (batch,)."""
    small, large = sorted((first, second), key=lambda maps: maps.shape[1] * maps.shape[2])
    resized = F.interpolate(large.float().unsqueeze(1), size=small.shape[1:], mode="area").squeeze(1)
    return correlation(small, resized)
