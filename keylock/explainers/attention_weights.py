"""The weights a transformer's attention uses, read off a forward pass without touching the network."""

import math
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["AttentionWeights"]

_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


class AttentionWeights(TorchFunctionMode):
    """Collects the attention weights of all passes inside its block, in the order in which they are computed.

    Known are `scaled_dot_product_attention` without a mask, torch's `MultiheadAttention`, and attention written out
    with a softmax over (batch, heads, tokens, tokens). Fused kernels give way to the written-out form meanwhile.

    Attributes:
        weights: Of each attention (batch, heads, tokens, tokens).
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run one operation, and keep attention weights where it computes some."""
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and len(args) == 3 and not _changes_weights(kwargs):
            query, key, value = args
            scale = kwargs.get("scale") or 1 / math.sqrt(query.shape[-1])
            weights = F.softmax(scale * query @ key.transpose(-2, -1), dim=-1)
            self.weights.append(weights)
            return weights @ value
        if func is F.multi_head_attention_forward:
            bound = signature(func).bind(*args, **kwargs)
            bound.arguments.update(need_weights=True, average_attn_weights=False)
            output, shown = func(*bound.args, **bound.kwargs)
            if shown is not None:  # For the type checker: weights were asked for.
                self.weights.append(shown)
            return output, None
        result = func(*args, **kwargs)
        if func in _SOFTMAX and result.dim() == 4 and result.shape[-2] == result.shape[-1]:
            self.weights.append(result)
        return result


def _changes_weights(kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a call masks, drops or groups, which the written-out form here does not."""
    masked = kwargs.get("attn_mask") is not None or kwargs.get("is_causal") or kwargs.get("enable_gqa")
    return bool(masked or kwargs.get("dropout_p"))
