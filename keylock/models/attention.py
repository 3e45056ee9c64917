"""The attention of transformers: which modules compute it, and the weights they use."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from keylock.errors import LayerNotFoundError

__all__ = ["capture_attention", "is_attention"]


def is_attention(module: nn.Module) -> bool:
    """Tell whether a module is self-attention of a kind known here: torch's own, or one written as timm's is.

    The latter has a switch `fused_attn` and, when that is off, hands its weights through a module `attn_drop`.
    """
    if isinstance(module, nn.MultiheadAttention):
        return True
    return hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Module)


@contextmanager
def capture_attention(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the attention weights (batch, heads, tokens, tokens) of named modules, of passes inside the block.

    Meanwhile these modules compute their weights openly rather than inside a fused kernel.

    Raises:
        LayerNotFoundError: A name is no attention module of the model.
    """
    modules = dict(model.named_modules())
    weights: dict[str, Tensor] = {}
    with ExitStack() as undo:
        for name in names:
            if name not in modules or not is_attention(modules[name]):
                raise LayerNotFoundError(f"{name!r} is no attention module of this model")
            _open(modules[name], name, weights, undo)
        yield weights


def _open(module: nn.Module, name: str, weights: dict[str, Tensor], undo: ExitStack) -> None:
    if isinstance(module, nn.MultiheadAttention):

        def ask(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

        def keep(_module: nn.Module, _args: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
            weights[name] = output[1]

        handles = [module.register_forward_pre_hook(ask, with_kwargs=True), module.register_forward_hook(keep)]
    else:
        fused = module.fused_attn
        undo.callback(setattr, module, "fused_attn", fused)
        module.fused_attn = False  # type: ignore[assignment]
        dropout = module.attn_drop
        assert isinstance(dropout, nn.Module)  # noqa: S101 - `is_attention` has looked

        def keep_input(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            weights[name] = args[0]

        handles = [dropout.register_forward_pre_hook(keep_input)]
    for handle in handles:
        undo.callback(handle.remove)
