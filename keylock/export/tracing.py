"""Trace a function that differentiates inside into a flat graph whose batch dimension is symbolic.

`torch.export` refuses a function that calls `torch.autograd.grad`, and its strict mode bakes the batch size into the
backward pass. Here the function runs over fake tensors in which only dimension 0 is a symbol, below autograd, so the
graph holds plain forward operations of both passes and no size of the example batch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from keylock.errors import ExportError
from keylock.export.decompositions import DECOMPOSITIONS

__all__ = ["TRACED_BATCH", "trace"]

TRACED_BATCH = 7
"""Batch size of the example. A number that no layer has as its channel count, so that the two are never confused."""


def trace(
    function: Callable[[Tensor, Tensor], tuple[Tensor, ...]], *, image_shape: tuple[int, int, int]
) -> fx.GraphModule:
    """Trace `function(image, target)` into a graph for any batch size.

    Args:
        function: Maps `image` float32 `(batch, C, H, W)` and `target` int64 `(batch,)` to a tuple of tensors whose
            first dimension is the batch. It may call `torch.autograd.grad`.
        image_shape: `(C, H, W)`.

    Returns:
        A graph of ATen operations; weights are attributes of the graph module.

    Raises:
        ExportError: An output has a fixed batch size: the function computes with the number of images.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    image = _with_symbolic_batch(mode, torch.zeros(TRACED_BATCH, *image_shape), name="image")
    target = _with_symbolic_batch(mode, torch.zeros(TRACED_BATCH, dtype=torch.int64), name="target")
    graph = _trace(function, image, target)
    if any(isinstance(node.target, OpOverload) and node.target._schema.is_mutable for node in graph.graph.nodes):
        # Operations that work in place would make merging equal nodes wrong. Autograd does not run under
        # `functionalize`, so that it takes a second trace, of the graph that autograd has already left.
        graph = _trace(functionalize(graph, remove="mutations"), image, target)
    _require_symbolic_outputs(graph)
    return graph.eval()


def _trace(function: Callable[..., tuple[Tensor, ...]], image: Tensor, target: Tensor) -> fx.GraphModule:
    # "real" mode takes the inputs as they are, that is, fake with one symbol. Composite operations such as `matmul` see
    # that symbol only through the Python dispatcher.
    tracer = make_fx(function, decomposition_table=DECOMPOSITIONS, tracing_mode="real", _allow_non_fake_inputs=True)
    with enable_python_dispatcher():
        return tracer(image, target)


def _with_symbolic_batch(mode: FakeTensorMode, example: Tensor, *, name: str) -> Tensor:
    """Return a fake tensor like `example` `(batch, ...)` in which only dimension 0 is a symbol."""
    sizes = [DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * (example.ndim - 1)]
    context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=sizes)
    return mode.from_tensor(example, symbolic_context=context, source=ConstantSource(name))


def _require_symbolic_outputs(graph: fx.GraphModule) -> None:
    for node in graph.graph.output_node().all_input_nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and not isinstance(value.shape[0], torch.SymInt):
            raise ExportError(
                f"the graph would only take batches of {value.shape[0]}: the network or the explainer computes with "
                "the number of images; write it without reading the batch size"
            )
