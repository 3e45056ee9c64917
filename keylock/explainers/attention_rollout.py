"""Attention rollout: which patches the class token has drawn from, through all layers of a transformer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from keylock.errors import LayerNotFoundError
from keylock.explainers.attention_weights import AttentionWeights
from keylock.explainers.base import Family, MultiPass
from keylock.explainers.passes import Run
from keylock.explainers.tokens import lay_out_tokens, require_patch_grid

__all__ = ["AttentionRollout"]


@dataclass(frozen=True)
class AttentionRollout(MultiPass):
    """Attention rollout, one value for each patch; it explains the features, whatever the target class.

    The attention of every layer is averaged over its heads, mixed with the identity in equal parts for the residual
    connection, and multiplied from the first layer to the last. Shown is the row of the class token, or the mean of all
    rows where there is none.

    References:
        Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, section 3.
    """

    name = "attention_rollout"
    family = Family.ATTENTION

    def maps_in(self, run: Run) -> Tensor:
        """Return maps (batch, rows, columns), one value for each patch."""
        # An input that asks for a gradient keeps torch's own layers from a fast path that shows nobody its attention.
        with AttentionWeights() as attention:
            run.network(run.images.detach().requires_grad_())
        if not attention.weights:
            raise LayerNotFoundError(
                "attention_rollout multiplies the attention of a transformer, which this network has not: "
                "take grad_cam or visual_backprop"
            )
        tokens = attention.weights[0].shape[-1]
        if any(weights.shape[-2:] != (tokens, tokens) for weights in attention.weights):
            raise LayerNotFoundError("attention_rollout needs attention among the same tokens in every layer")
        if any(weights.shape[0] != run.images.shape[0] for weights in attention.weights):
            raise LayerNotFoundError(
                "attention_rollout needs attention among all patches of an image, and this network attends within "
                "windows: take grad_cam or visual_backprop"
            )
        identity = torch.eye(tokens, dtype=run.images.dtype, device=run.images.device)
        rolled = identity
        for weights in attention.weights:
            rolled = (weights.mean(dim=1) + identity) / 2 @ rolled
        size = (run.images.shape[2], run.images.shape[3])
        rows, columns = require_patch_grid(tokens, size)
        drawn = rolled[:, 0] if tokens > rows * columns else rolled.mean(dim=1)
        return lay_out_tokens(drawn.unsqueeze(2), size).squeeze(1)
