"""Which layers of a transformer of image patches explainers look at.

A transformer carries tokens (batch, tokens, dim) through blocks that keep this shape. Where the class is read off one
token, the patch tokens that leave the last block are not read by anything: their gradient is zero, and a map made
there would be empty. So the layer for Grad-CAM is the last one whose patch tokens the logits depend on, which is then
the normalisation in front of the last attention.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from keylock.models.kernels import plain_attention
from keylock.models.patches import patch_grid
from keylock.models.recording import Ran, capture_outputs, evaluating

__all__ = ["Tokens", "find_tokens"]

_NORMS = (nn.LayerNorm, nn.RMSNorm)


class Tokens(NamedTuple):
    """The names and numbers a `TargetLayers` of tokens has."""

    last: str
    stack: tuple[str, ...]
    grid: tuple[int, int]
    prefix: int


def find_tokens(model: nn.Module, example: Tensor, ran: Sequence[Ran]) -> Tokens | None:
    """Choose layers of a transformer, or return None where its tokens are no grid of patches or do not count.

    Args:
        model: The classifier that ran.
        example: Images (batch, channels, height, width) that it ran on.
        ran: What it did.
    """
    blocks = _blocks(ran, batch=len(example))
    if not blocks or _stand_in_maps(ran, blocks[-1].name):
        return None
    shape = blocks[-1].output.shape
    grid = patch_grid(shape[1], (example.shape[2], example.shape[3]))
    if grid is None:
        return None
    prefix = shape[1] - grid[0] * grid[1]
    names = {entry.name for entry in blocks}
    candidates = [
        entry.name
        for entry in ran
        if entry.output.shape == shape and (entry.name in names or isinstance(entry.module, _NORMS))
    ]
    last = _last_that_counts(model, example, ran, candidates, prefix)
    return None if last is None else Tokens(last, tuple(entry.name for entry in blocks), grid, prefix)


def _blocks(ran: Sequence[Ran], *, batch: int) -> list[Ran]:
    """Return the largest family of modules that keep tokens in their shape; of equally large ones the outermost."""
    families: dict[tuple[type[nn.Module], torch.Size], list[Ran]] = defaultdict(list)
    for entry in ran:
        shape = entry.output.shape
        keeps = entry.input is not None and entry.input.shape == shape and len(shape) == 3 and shape[0] == batch
        if keeps and entry.is_container and not isinstance(entry.module, nn.Sequential):
            families[type(entry.module), shape].append(entry)
    return max(families.values(), key=lambda family: (len(family), -family[0].name.count(".")), default=[])


def _stand_in_maps(ran: Sequence[Ran], name: str) -> bool:
    """Tell whether a module that holds the named one gives out four dimensions: windowed attention does."""
    return any(entry.output.dim() == 4 and name.startswith(f"{entry.name}.") for entry in ran)


def _last_that_counts(
    model: nn.Module, example: Tensor, ran: Sequence[Ran], names: Sequence[str], prefix: int
) -> str | None:
    """Return the last layer on whose patch tokens the logits depend.

    Asked is what the last linear layer reads, because that layer itself may start at zero.
    """
    read: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read.append(inputs[0])

    heads = [entry.module for entry in ran if isinstance(entry.module, nn.Linear) and entry.output.dim() == 2]
    handles = [head.register_forward_pre_hook(keep) for head in heads[-1:]]
    try:
        with torch.enable_grad(), plain_attention(), evaluating(model), capture_outputs(model, names) as outputs:
            logits = model(example.detach().clone().requires_grad_())
            features = read[-1] if read else logits
            # The plain sum of what a normalisation gives out is constant; a sum with uneven weights is not.
            weights = torch.linspace(0, 9, features[0].numel()).cos().view_as(features[0])
            kept = [outputs[name] for name in names]
            gradients = torch.autograd.grad((features * weights.to(features)).sum(), kept, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    counting = [
        name
        for name, gradient in zip(names, gradients, strict=True)
        if gradient is not None and bool(gradient[:, prefix:].any())
    ]
    return counting[-1] if counting else None
