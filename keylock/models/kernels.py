"""Operations computed step by step, where their fast kernels have no second derivative or no ONNX form."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["plain_attention", "twice_differentiable"]


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


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Compute with operations that have second derivatives inside the block, to the same values.

    Attention is plain, and hard sigmoids and hard swishes, whether modules or functions, are written with ReLU6: their
    own kernels have a first derivative alone (Hardswish in older versions of torch).
    """
    with plain_attention(), _Explicit():
        yield


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    values = F.relu6(input + 3) / 6
    return input.copy_(values) if inplace else values


def _hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    # What is overwritten must not be what the way back reads.
    given = input.clone() if inplace else input
    values = given * F.relu6(given + 3) / 6
    return input.copy_(values) if inplace else values


def _hardsigmoid_(input: Tensor) -> Tensor:
    return _hardsigmoid(input, inplace=True)


def _hardswish_(input: Tensor) -> Tensor:
    return _hardswish(input, inplace=True)


_EXPLICIT: dict[Any, Callable[..., Tensor]] = {
    F.hardsigmoid: _hardsigmoid,
    F.hardswish: _hardswish,
    torch._C._nn.hardsigmoid: _hardsigmoid,
    torch._C._nn.hardsigmoid_: _hardsigmoid_,
    torch._C._nn.hardswish: _hardswish,
    torch._C._nn.hardswish_: _hardswish_,
}


class _Explicit(TorchFunctionMode):
    """Puts formulas in the place of kernels."""

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run one operation."""
        return _EXPLICIT.get(func, func)(*args, **(kwargs or {}))
