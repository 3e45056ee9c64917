"""Attention computed step by step, where its fast kernels have no second derivative or no ONNX form."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["plain_attention"]


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention by matrix products and softmax inside the block, for all models of the process.

    Fused kernels of scaled dot-product attention give gradients, but no gradients of gradients; and in evaluation
    mode torch's encoder layers have a fast path that calls none of their submodules, so that hooks stay silent.
    A forward pass recorded inside the block can be differentiated outside it as often as wanted.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
