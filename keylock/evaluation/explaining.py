"""Running any explainer on a model whose every input gets a perturbation: the key, a wrong one, or none."""

import torch
from torch import Tensor, nn

from keylock.explainers import Explained, Explainer
from keylock.models import added_to_inputs, split_rows

__all__ = ["added_to_inputs", "explain_alone"]


def explain_alone(
    model: nn.Module,
    explainer: Explainer,
    images: Tensor,
    *,
    offset: Tensor | None = None,
    targets: Tensor | None = None,
) -> Explained:
    """Explain images by one explainer of any kind, in batches of bounded size.

    Args:
        model: A classifier in evaluation mode.
        explainer: What to compute.
        images: Preprocessed images (count, channels, height, width).
        offset: Added to everything the model is given (channels, height, width); nothing by default.
        targets: Class indices (count,); by default the class the model predicts.

    Returns:
        Logits (count, classes) and maps (count, h, w).
    """
    chosen = torch.full((len(images),), -1, device=images.device) if targets is None else targets
    with added_to_inputs(model, offset):
        parts = [explainer.explain(model, rows, classes) for rows, classes in split_rows(images, chosen)]
    return Explained(torch.cat([part.logits for part in parts]), torch.cat([part.maps for part in parts]))
