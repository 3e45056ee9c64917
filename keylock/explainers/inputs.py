"""What methods share that differentiate with respect to the input, pass after pass."""

import torch
from torch import Tensor, nn

__all__ = ["draws_from", "input_gradient"]


def input_gradient(model: nn.Module, images: Tensor, targets: Tensor, *, create_graph: bool) -> Tensor:
    """Return the gradient of each image's target logit with respect to the image, in its shape.

    Args:
        model: A classifier in evaluation mode.
        images: Preprocessed images (batch, channels, height, width).
        targets: Class indices (batch,), none negative.
        create_graph: Keep the graph, so that a loss on the gradient trains the model.
    """
    inputs = images.detach().requires_grad_()
    scores = model(inputs).gather(1, targets.unsqueeze(1))
    (gradient,) = torch.autograd.grad(scores.sum(), inputs, create_graph=create_graph)
    return gradient


def draws_from(generator: torch.Generator | None, seed: int) -> torch.Generator:
    """Return the generator that was given, or a new one of that seed, on the CPU so that every device draws alike."""
    return torch.Generator().manual_seed(seed) if generator is None else generator
