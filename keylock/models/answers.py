"""What a user's module answers with, turned into logits (batch, classes) by hooks that leave its layers alone.

A module may return a dict, a tuple or an object that holds logits; one logit for each image, as networks for yes and no
do; or logits with dimensions of size one behind them. And it may write to the images that it is given.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from keylock.errors import KeylockError, ModelError

__all__ = ["give_logits_", "logits_of_answer", "run"]

_NAMES = ("logits", "out", "output", "outputs", "pred", "scores")
# Operations that change the form of what they are given and nothing else.
_FORMS = ("View", "Squeeze", "Unsqueeze", "Reshape", "Alias", "Clone", "ToCopy", "Permute", "Transpose", "TBackward")


def run(model: nn.Module, images: Tensor, *, copy: bool = True) -> Any:  # noqa: ANN401 - whatever it returns
    """Run a user's module, by default on a copy of the images, to which it may write.

    Raises:
        ModelError: It fails on them; the message says how.
    """
    try:
        return model(images.clone() if copy else images)
    except KeylockError:
        raise
    except Exception as error:
        line = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise ModelError(f"the model does not take images of shape {tuple(images.shape)}: {line}") from error


def give_logits_(model: nn.Module, images: Tensor) -> nn.Module:
    """Make a module return logits (batch, classes) and leave its images as they are, in place, by hooks at its root.

    One logit z for each image becomes two, -z/2 and z/2: their softmax is the sigmoid of z, and the gradient of the
    first is the negative of that of the second.

    Args:
        model: In evaluation mode. A module whose answer is (batch, classes) already is not changed.
        images: Preprocessed images (batch, channels, height, width), two or more.

    Raises:
        ModelError: There are no logits in what it returns, or more than one thing could be them; or it ends in a
            softmax or sigmoid.
    """
    given = images.clone()
    with torch.no_grad():
        answer = run(model, given, copy=False)
    if not torch.equal(given, images):
        model.register_forward_pre_hook(_KeepImages(), prepend=True)
    key = _where(answer, len(images))
    logits = answer if key is None else _pick(answer, key)
    one = logits.shape[1:].numel() == 1
    _require_logits(model, images, key, one=one)
    if key is not None or logits.dim() != 2 or one:
        model.register_forward_hook(_Logits(key, one=one))
    return model


def logits_of_answer(model: nn.Module, answer: Any) -> Tensor:  # noqa: ANN401
    """Return the logits in an answer of the module that `give_logits_` made this one from."""
    for hook in model._forward_hooks.values():
        if isinstance(hook, _Logits):
            return hook(model, (), answer)
    found: Tensor = answer
    return found


class _KeepImages:
    """Runs before a module that writes to its images. A class, so that copies of the module can be pickled."""

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0].clone(), *inputs[1:])


class _Logits:
    """Runs after a module and takes the logits out of its answer."""

    def __init__(self, key: str | int | None, *, one: bool) -> None:
        self._key, self._one = key, one

    def __call__(self, _module: nn.Module, _inputs: tuple[Any, ...], answer: Any) -> Tensor:  # noqa: ANN401
        logits: Tensor = answer if self._key is None else _pick(answer, self._key)
        if not self._one:
            return logits.flatten(1)
        # What squeezes takes the batch dimension of one image away too.
        logits = logits.reshape(-1, 1) / 2
        return torch.cat([-logits, logits], dim=1)


def _pick(answer: Any, key: str | int) -> Any:  # noqa: ANN401
    if isinstance(key, int) or isinstance(answer, Mapping):
        return answer[key]
    return getattr(answer, key)


def _items(answer: Any) -> list[tuple[str | int, Any]]:  # noqa: ANN401
    if isinstance(answer, Mapping):
        return list(answer.items())
    if is_dataclass(answer):
        return [(entry.name, getattr(answer, entry.name)) for entry in fields(answer)]
    if isinstance(answer, tuple) and hasattr(answer, "_fields"):
        return [(name, getattr(answer, name)) for name in answer._fields]
    return list(enumerate(answer)) if isinstance(answer, tuple | list) else []


def _where(answer: Any, count: int) -> str | int | None:  # noqa: ANN401
    """Return under which name or at which place the logits stand; None where the answer is them."""
    if _is_logits(answer, count):
        return None
    items = _items(answer)
    fitting = [key for key, value in items if _is_logits(value, count)]
    named = [key for key in fitting if key in _NAMES]
    if "logits" in named:
        return "logits"
    if len(fitting) == 1:
        return fitting[0]
    if len(named) == 1:
        return named[0]
    if fitting:
        choices = ", ".join(f"{key!r} {tuple(_pick(answer, key).shape)}" for key in fitting)
        raise ModelError(
            f"the model returns several things that could be logits ({choices}): wrap it in a module that returns one"
        )
    what = f"{tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
    inside = ", ".join(f"{key!r} {tuple(value.shape)}" for key, value in items if isinstance(value, Tensor))
    raise ModelError(
        f"the model must return logits (batch, classes), not {what}{f' of {inside}' if inside else ''}: wrap it in a "
        "module that does"
    )


def _is_logits(value: Any, count: int) -> bool:  # noqa: ANN401
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape[:1] != (count,):
        return False
    return value.dim() <= 2 or value.shape[2:].numel() == 1


def _require_logits(model: nn.Module, images: Tensor, key: str | int | None, *, one: bool) -> None:
    """Refuse probabilities, and answers that no gradient leads to, by the last operation of the way back."""
    with torch.enable_grad():
        answer = run(model, images.detach().requires_grad_())
    logits: Tensor = answer if key is None else _pick(answer, key)
    node = logits.grad_fn
    while node is not None and node.name().startswith(_FORMS) and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    if node is None:
        raise ModelError(
            "no gradient leads through the model, whose forward runs without gradients or detaches: let them through"
        )
    name = node.name()
    if name.startswith(("Softmax", "SafeSoftmax")) or (name.startswith("Sigmoid")):
        what = "sigmoid" if name.startswith("Sigmoid") else "softmax"
        found = "a probability" if one else "probabilities"
        raise ModelError(
            f"the model ends in a {what}, so it returns {found}: give it without, so that it returns logits"
        )
