"""Operations computed step by step, where their fast kernels have no second derivative or no ONNX form."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["plain_attention", "plain_pooling", "twice_differentiable"]


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
    with plain_attention(), _Instead(_TWICE_DIFFERENTIABLE):
        yield


@contextmanager
def plain_pooling() -> Iterator[None]:
    """Pool over whole maps without a change of memory layout inside the block.

    Where channels come last in memory, as after the permutations of ConvNeXt and Swin, torch gives such a mean the
    layout of its input by writing strides in place, and the way back scatters into memory: neither has an ONNX form.
    """
    with _Instead(_PLAIN_POOLING):
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


def _adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:  # noqa: ANN401
    return F.adaptive_avg_pool2d(input.contiguous(), output_size)


_TWICE_DIFFERENTIABLE: dict[Any, Callable[..., Tensor]] = {
    F.hardsigmoid: _hardsigmoid,
    F.hardswish: _hardswish,
    torch._C._nn.hardsigmoid: _hardsigmoid,
    torch._C._nn.hardsigmoid_: _hardsigmoid_,
    torch._C._nn.hardswish: _hardswish,
    torch._C._nn.hardswish_: _hardswish_,
}


_PLAIN_POOLING: dict[Any, Callable[..., Tensor]] = {
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    torch._C._nn.adaptive_avg_pool2d: _adaptive_avg_pool2d,
}


class _Instead(TorchFunctionMode):
    """Runs other functions in the place of some."""

    def __init__(self, table: Mapping[Any, Callable[..., Tensor]]) -> None:
        super().__init__()
        self._table = table

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run one operation."""
        return self._table.get(func, func)(*args, **(kwargs or {}))
