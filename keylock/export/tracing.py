"""Trace a function that differentiates inside into a flat graph whose batch dimension is symbolic.

`torch.export` refuses a function that calls `torch.autograd.grad`, and its strict mode bakes the batch size into the
backward pass. Here the function runs over fake tensors in which only dimension 0 is a symbol, below autograd, so the
graph holds plain forward operations of both passes and no size of the example batch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from keylock.errors import ExportError
from keylock.export.decompositions import DECOMPOSITIONS
from keylock.export.inputs import GraphInput
from keylock.models import plain_attention, plain_pooling

__all__ = ["trace"]


def trace(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[GraphInput]) -> fx.GraphModule:
    """Trace a function of tensors into a graph for any batch size.

    Args:
        function: Maps the inputs, in their order, to a tuple of tensors whose first dimension is the batch. It may call
            `torch.autograd.grad`.
        inputs: What it is called with.

    Returns:
        A graph of ATen operations; weights are attributes of the graph module.

    Raises:
        ExportError: An output has a fixed batch size: the function computes with the number of images.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    examples = [_fake(mode, given) for given in inputs]
    graph = _trace(function, examples)
    if any(isinstance(node.target, OpOverload) and node.target._schema.is_mutable for node in graph.graph.nodes):
        # Operations that work in place would make merging equal nodes wrong. Autograd does not run under
        # `functionalize`, so that it takes a second trace, of the graph that autograd has already left.
        graph = _trace(functionalize(graph, remove="mutations"), examples)
    _require_symbolic_outputs(graph)
    return graph.eval()


def _trace(function: Callable[..., tuple[Tensor, ...]], examples: Sequence[Tensor]) -> fx.GraphModule:
    # "real" mode takes the inputs as they are, that is, fake with one symbol. Composite operations such as `matmul` see
    # that symbol only through the Python dispatcher.
    table: dict[OpOverload, Callable[..., Any]] = {**DECOMPOSITIONS}
    table[torch.ops.aten.expand.default] = partial(_expand, examples[0])
    tracer = make_fx(function, decomposition_table=table, tracing_mode="real", _allow_non_fake_inputs=True)
    with enable_python_dispatcher(), plain_attention(), plain_pooling():
        return tracer(*examples)


def _expand(example: Tensor, value: Tensor, size: Sequence[int | torch.SymInt], *, implicit: bool = False) -> Tensor:
    """Repeat a weight for every image, as transformers do with the class token, by adding it to zeros.

    A weight is not a fake tensor and cannot be expanded to a symbol; zeros like the example can have one as a size.
    """
    if isinstance(value, FakeTensor) or not any(isinstance(length, torch.SymInt) for length in size):
        unsupported: Tensor = NotImplemented
        return unsupported
    missing = len(size) - value.ndim
    lengths = [value.shape[axis - missing] if length == -1 else length for axis, length in enumerate(size)]
    return example.new_zeros(lengths, dtype=value.dtype) + value


def _fake(mode: FakeTensorMode, given: GraphInput) -> Tensor:
    """Return a fake tensor like an input's example, in which only the dimensions that are left open are symbols."""
    example = given.example
    sizes = [DimDynamic.STATIC] * example.ndim
    if given.batched:
        sizes[0] = DimDynamic.DYNAMIC
    if given.by_row:
        sizes[1] = DimDynamic.DYNAMIC
    context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=sizes)
    return mode.from_tensor(example, symbolic_context=context, source=ConstantSource(given.name))


def _require_symbolic_outputs(graph: fx.GraphModule) -> None:
    for node in graph.graph.output_node().all_input_nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and not isinstance(value.shape[0], torch.SymInt):
            raise ExportError(
                f"the graph would only take batches of {value.shape[0]}: the network or the explainer computes with "
                "the number of images; write it without reading the batch size"
            )
