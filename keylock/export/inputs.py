"""What the graphs take: names, shapes, and which inputs have a row for each image.

An explainer's graph takes everything secret as an input, so that nothing of it stands in the file: the key, and for a
two-factor lock the tensors of the adapter, by the names of `Adapter.tensors`. A mergeable graph takes the weights of
the adapted layers instead, by their names in the model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = [
    "ROWS",
    "SHARE",
    "TRACED_BATCH",
    "GraphInput",
    "adapter_inputs",
    "explainer_inputs",
    "gradient_sum_inputs",
    "is_secret",
    "keyed_inputs",
    "prediction_inputs",
    "share_input",
    "target_input",
    "weight_inputs",
]

TRACED_BATCH = 7
"""Batch size of the examples. A number that no layer has as its channel count, so that the two are never confused."""

SHARE = "share"
"""The input that says how much of each row is in the sum of each image."""

ROWS = frozenset({"image", "target", "keyed", SHARE})
"""The inputs that differ from batch to batch."""

_TRACED_IMAGES = 5
_KEY = "key"
_ADAPTER = ("gate.", "delta.")


@dataclass(frozen=True)
class GraphInput:
    """One input of a graph.

    Attributes:
        name: Its name in the graph.
        example: Zeros of its type and shape.
        batched: Whether its first dimension is left open: the batch, unless the second one is.
        by_row: Whether its second dimension is the batch.
    """

    name: str
    example: Tensor
    batched: bool = True
    by_row: bool = False


def prediction_inputs(image_shape: tuple[int, int, int]) -> list[GraphInput]:
    """Return `image`, float32 (batch, C, H, W)."""
    return [GraphInput("image", torch.zeros(TRACED_BATCH, *image_shape))]


def explainer_inputs(
    image_shape: tuple[int, int, int], adapter_shapes: Mapping[str, Sequence[int]] | None = None
) -> list[GraphInput]:
    """Return `image`, `target` int64 (batch,), and the others of `keyed_inputs`."""
    image, *others = keyed_inputs(image_shape, adapter_shapes)
    return [image, target_input(), *others]


def target_input() -> GraphInput:
    """Return `target` int64 (batch,)."""
    return GraphInput("target", torch.zeros(TRACED_BATCH, dtype=torch.int64))


def gradient_sum_inputs(
    image_shape: tuple[int, int, int], adapter_shapes: Mapping[str, Sequence[int]] | None = None
) -> list[GraphInput]:
    """Return `image`, `target` int64 (batch,), `share` float32 (images, batch), and the others of `keyed_inputs`."""
    image, target, *others = explainer_inputs(image_shape, adapter_shapes)
    return [image, target, share_input(), *others]


def share_input() -> GraphInput:
    """Return `share` float32 (images, batch)."""
    return GraphInput(SHARE, torch.zeros(_TRACED_IMAGES, TRACED_BATCH), by_row=True)


def keyed_inputs(
    image_shape: tuple[int, int, int], adapter_shapes: Mapping[str, Sequence[int]] | None = None
) -> list[GraphInput]:
    """Return `image`, `keyed` float32 (batch,), `key` (C, H, W) and those of the adapter."""
    return [
        *prediction_inputs(image_shape),
        GraphInput("keyed", torch.zeros(TRACED_BATCH)),
        GraphInput(_KEY, torch.zeros(image_shape), batched=False),
        *adapter_inputs(adapter_shapes or {}),
    ]


def adapter_inputs(shapes: Mapping[str, Sequence[int]]) -> list[GraphInput]:
    """Return one input for each tensor of an adapter, in the order of their names."""
    return [GraphInput(name, torch.zeros(tuple(shapes[name])), batched=False) for name in sorted(shapes)]


def weight_inputs(network: nn.Module, layers: Iterable[str]) -> list[GraphInput]:
    """Return one input for each parameter of some layers, `LAYER.weight` and `LAYER.bias`.

    Raises:
        KeyError: The network has no such layer.
    """
    modules = dict(network.named_modules())
    return [
        GraphInput(f"{layer}.{part}", torch.zeros_like(parameter, requires_grad=False), batched=False)
        for layer in layers
        for part, parameter in modules[layer].named_parameters(recurse=False)
    ]


def is_secret(name: str) -> bool:
    """Whether an input of a graph is the key or belongs to the adapter; these have no batch dimension."""
    return name == _KEY or name.startswith(_ADAPTER)
