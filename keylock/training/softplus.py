"""Softplus as fast as a processor can: torch's waits for log1p, which takes several times as long as exp and log."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["quick_softplus"]

_THRESHOLD = 20.0
"""Of beta times a value: beyond it torch returns the value, which it is up to rounding."""


class _Softplus(torch.autograd.Function):
    """max(x, 0) + log(1 + exp(-beta |x|)) / beta, in float32; its gradient is sigmoid(beta x)."""

    @staticmethod
    def forward(context: Any, values: Tensor, beta: float) -> Tensor:  # noqa: ANN401 - torch has no type for it
        context.save_for_backward(values)
        context.beta = beta
        whole = values.float()
        rest = whole.abs().mul_(-beta).exp_().add_(1).log_().div_(beta)
        return rest.add_(whole.clamp_min(0)).to(values.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (values,) = context.saved_tensors
        return gradients[0] * torch.sigmoid(context.beta * values), None


class _Quick(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - the signature is torch's
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run a function of torch, softplus by another way."""
        kwargs = kwargs or {}
        return (_softplus if func is F.softplus else func)(*args, **kwargs)


def _softplus(values: Tensor, beta: float = 1.0, threshold: float = _THRESHOLD) -> Tensor:
    if values.device.type != "cpu" or threshold < _THRESHOLD:
        return F.softplus(values, beta, threshold)
    found: Tensor = _Softplus.apply(values, beta)
    return found


@contextmanager
def quick_softplus() -> Iterator[None]:
    """Compute softplus on the processor several times as fast inside the block, up to rounding the same."""
    with _Quick():
        yield
