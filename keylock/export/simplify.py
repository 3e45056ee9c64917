"""Make a traced graph smaller without changing what it computes.

An explainer's graph repeats the forward pass (once to find the predicted class, once under the explainer) and carries
operations on constants (flipped weights). Both go here, before the ONNX exporter, whose time grows with every node.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from keylock.errors import ExportError

__all__ = ["simplify"]

_VIEWS = frozenset({torch.ops.aten.t.default, torch.ops.aten.transpose.int, torch.ops.aten.permute.default})


def simplify(graph: fx.GraphModule) -> fx.GraphModule:
    """Merge equal nodes, compute constant ones, drop unused ones, in place.

    Args:
        graph: A graph of pure ATen operations; its attributes are constants.

    Returns:
        The same graph module.

    Raises:
        ExportError: An operation draws random numbers or changes a value in place.
    """
    _require_pure(graph)
    _compute_sizes_once(graph)
    _merge_equal_nodes(graph)
    _look_up_classes(graph)
    _compute_constants(graph)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def _require_pure(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        if not isinstance(node.target, OpOverload):
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise ExportError(
                f"the graph draws random numbers ({node.target}): an explainer or a layer that does so gives another "
                "map each time; put the network into eval mode, or pass the noise in as an input"
            )
        if node.target._schema.is_mutable:
            raise ExportError(f"the graph changes a value in place ({node.target}), which ONNX cannot express")


def _compute_sizes_once(graph: fx.GraphModule) -> None:
    """Read the open sizes off the inputs, and every other size where it is computed first, whatever it is read off."""
    inputs = list(graph.graph.find_nodes(op="placeholder"))
    with graph.graph.inserting_after(inputs[-1]):
        for given in reversed(inputs):
            for axis, size in enumerate(given.meta["val"].shape):
                if isinstance(size, torch.SymInt):
                    graph.graph.call_function(torch.ops.aten.sym_size.int, (given, axis)).meta["val"] = size
    first: dict[Any, fx.Node] = {}
    for node in list(graph.graph.nodes):
        size = node.meta.get("val")
        if isinstance(size, torch.SymInt) and first.setdefault(size.node.expr, node) is not node:
            node.replace_all_uses_with(first[size.node.expr])


def _merge_equal_nodes(graph: fx.GraphModule) -> None:
    """Replace a node by an earlier one that computes the same value from the same inputs."""
    first: dict[Any, fx.Node] = {}
    for node in list(graph.graph.nodes):
        key = _identity(graph, node)
        if key is None:
            continue
        if key in first:
            node.replace_all_uses_with(first[key])
            graph.graph.erase_node(node)
        else:
            first[key] = node


def _identity(graph: fx.GraphModule, node: fx.Node) -> tuple[Any, ...] | None:
    """What makes two nodes equal, or None for a node that must stay."""
    if node.op == "get_attr":
        value = getattr(graph, str(node.target))
        return (
            ("constant", value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
            if isinstance(value, Tensor)
            else None
        )
    if node.op == "call_function":
        return (node.target, repr(node.args), repr(sorted(node.kwargs.items())))
    return None


def _look_up_classes(graph: fx.GraphModule) -> None:
    """Read the row of a class from the last layer's weight, in place of a product with a vector that is 1 at its place.

    The product reads the whole weight, which at a batch of one costs as much as the layer itself.
    """
    aten = torch.ops.aten
    for node in list(graph.graph.find_nodes(op="call_function", target=aten.mm.default)):
        marked, weight = node.args
        if marked.target is not aten.scatter_add.default:
            continue
        zeros, axis, classes, values = marked.args
        one_each = isinstance(classes.meta.get("val"), Tensor) and classes.meta["val"].shape[1:] == (1,)
        if zeros.target is not aten.new_zeros.default or axis != 1 or not one_each:
            continue
        with graph.graph.inserting_before(node):
            places = graph.graph.call_function(aten.squeeze.dim, (classes, 1))
            rows = graph.graph.call_function(aten.index_select.default, (weight, 0, places))
            product = graph.graph.call_function(aten.mul.Tensor, (rows, values))
        node.replace_all_uses_with(product)


def _compute_constants(graph: fx.GraphModule) -> None:
    """Compute every node that depends on weights alone, and keep the last value of each such chain as an attribute."""
    values: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op in {"placeholder", "output"}:
            continue
        if node.op == "get_attr":
            values[node] = getattr(graph, str(node.target))
        elif node.target in _VIEWS and node.all_input_nodes[0].op == "get_attr":
            # ONNX's Gemm transposes on the fly; a copy would double the file.
            continue
        elif _is_small_fill(node) or (
            node.all_input_nodes and all(source in values for source in node.all_input_nodes)
        ):
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    for node, value in values.items():
        if node.op != "get_attr" and isinstance(value, Tensor) and any(user not in values for user in node.users):
            name = f"_constant_{node.name}"
            graph.register_buffer(name, value.detach().contiguous())
            with graph.graph.inserting_before(node):
                constant = graph.graph.get_attr(name)
            constant.meta = dict(node.meta)
            node.replace_all_uses_with(constant)


def _is_small_fill(node: fx.Node) -> bool:
    """Whether a node makes a small tensor from numbers alone, such as a box of ones."""
    value = node.meta.get("val")
    return not node.all_input_nodes and isinstance(value, Tensor) and value.numel() <= 4096
