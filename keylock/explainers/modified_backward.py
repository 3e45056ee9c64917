"""Gradients whose way back through the network follows rules of their own, without touching the network.

Two forward passes run under a function mode that sees every activation and linear operation, whether a module or a
function calls it. The first is the network's true pass: it records each operation's output and the factor that takes
the place of its derivative. The second computes the same outputs, but its way back multiplies by those factors. They
are functions of the weights in the true pass, so that a loss on the result trains the model with exact gradients.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from keylock.errors import ModelError
from keylock.explainers.passes import Run

__all__ = ["Rules", "modified_gradient"]

_ACTIVATIONS = {
    *(F.relu, F.relu6, F.hardtanh, F.leaky_relu, F.elu, F.selu, F.celu, F.silu, F.mish, F.hardswish),
    *(F.gelu, F.softplus, F.tanh, torch.relu, torch.tanh, Tensor.relu, Tensor.tanh),
}
_IN_PLACE: dict[Any, Any] = {
    **{torch.relu_: torch.relu, Tensor.relu_: torch.relu, torch.tanh_: torch.tanh, Tensor.tanh_: torch.tanh},
    **{F.hardtanh_: F.hardtanh, F.leaky_relu_: F.leaky_relu, F.elu_: F.elu, F.selu_: F.selu, F.celu_: F.celu},
}
_LINEAR = {
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(torch.conv1d, torch.conv2d, torch.conv3d),
}


@dataclass(frozen=True)
class Rules:
    """What takes the place of derivatives.

    Attributes:
        activation: From an activation and its input to the factor on its gradient, in the input's shape.
        linear: From the output of a linear operation to the factor on its gradient, or None for the gradient itself.
        rectify: Whether gradients lose their negative part before each activation.
        detached: Operations whose output counts as a constant.
        refused: Operations that there is no rule for, with the name to use for them.
    """

    activation: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
    linear: Callable[[Tensor], Tensor] | None = None
    rectify: bool = False
    detached: Sequence[Callable[..., Any]] = ()
    refused: Mapping[Any, str] = field(default_factory=dict)


def modified_gradient(run: Run, rules: Rules) -> Tensor:
    """Return each image's target logit propagated back to the image by `rules`, in the image's shape.

    Activations that work in place go on doing so, as whatever else reads their input expects.

    Raises:
        ModelError: The network has an operation there is no rule for.
    """
    record = _Record(rules)
    with record:
        run.network(run.images.detach().requires_grad_())
    with _Replay(rules, record.steps):
        return run.gradient(run.images)


class _Step(NamedTuple):
    """One operation of the true pass: its output and what multiplies gradients on the way back."""

    value: Tensor
    factor: Tensor


class _Mode(TorchFunctionMode):
    """Sees every call of an operation and hands activations and linear operations to its subclasses."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run one operation by the rules."""
        kwargs = dict(kwargs or {})
        if func in self.rules.refused:
            raise ModelError(
                f"the explainer has no rule for {self.rules.refused[func]}, which this network uses: take another one"
            )
        if func in self.rules.detached:
            return func(*args, **kwargs).detach()
        in_place = func in _IN_PLACE
        if in_place:
            func = _IN_PLACE[func]
        if func in _ACTIVATIONS:
            function, value, in_place_by_option = _out_of_place(func, args, kwargs)
            if not (in_place or in_place_by_option):
                return self.activation(function, value)
            # What is overwritten must not be what factors are computed from.
            return value.copy_(self.activation(function, value.clone()))
        if func in _LINEAR and self.rules.linear is not None:
            return self.linear(func(*args, **kwargs))
        return func(*args, **kwargs)

    def activation(self, function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        raise NotImplementedError

    def linear(self, output: Tensor) -> Tensor:
        raise NotImplementedError


class _Record(_Mode):
    """The true pass."""

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        self.steps: list[_Step] = []

    def activation(self, function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        output = function(value)
        # A copy, because the network may add to its own in place.
        self.steps.append(_Step(output.clone(), self.rules.activation(function, value)))
        return output

    def linear(self, output: Tensor) -> Tensor:
        if self.rules.linear is not None:
            self.steps.append(_Step(output.clone(), self.rules.linear(output)))
        return output


class _Replay(_Mode):
    """The pass that gradients take back."""

    def __init__(self, rules: Rules, steps: Sequence[_Step]) -> None:
        super().__init__(rules)
        self._steps: Iterator[_Step] = iter(steps)

    def activation(self, function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        output: Tensor = _Reweight.apply(value, *next(self._steps), self.rules.rectify)
        return output

    def linear(self, output: Tensor) -> Tensor:
        reweighted: Tensor = _Reweight.apply(output, *next(self._steps), False)
        return reweighted


class _Reweight(torch.autograd.Function):
    """Hands on a known value; its gradient is multiplied by a factor instead of a derivative."""

    @staticmethod
    def forward(ctx: Any, _value: Tensor, output: Tensor, factor: Tensor, rectify: bool) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(factor)
        ctx.rectify = rectify
        return output.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (factor,) = ctx.saved_tensors
        return (F.relu(gradient) if ctx.rectify else gradient) * factor, None, None, None


def _out_of_place(
    func: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Callable[[Tensor], Tensor], Tensor, bool]:
    """Return an activation as a function of its input alone that writes to a new tensor, that input, and `inplace`."""
    try:
        bound = inspect.signature(func).bind(*args, **kwargs)
    except ValueError:
        # Built-in functions have no signature that can be read, and no option to work in place.
        rest, options = args[1:], {name: value for name, value in kwargs.items() if name != "input"}
        return lambda value: func(value, *rest, **options), args[0] if args else kwargs["input"], False
    in_place = bool(bound.arguments.get("inplace", False))
    if "inplace" in bound.arguments:
        bound.arguments["inplace"] = False
    (first, given), *others = bound.arguments.items()
    return lambda value: func(**{first: value}, **dict(others)), given, in_place
