"""Sums over the rows of an image, taken as early on the way back as they can be.

A loop over gradients wants their sum over many variations of an image. Behind the first nonlinearity the way back is
linear and the same for every row: for most networks the input gradient of the first layer. So rows are summed before
it, and it runs once for each image.
"""

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, fx

from keylock.export.inputs import GraphInput
from keylock.graphs.contract import SHARE

__all__ = ["push_down_sums", "sum_rows"]

aten = torch.ops.aten


def sum_rows(share: Tensor, values: Tensor) -> Tensor:
    """Return weighted sums of rows: `share` (images, rows), `values` (rows, ...), the sums (images, ...)."""
    places = list(values.shape[1:])
    laid_out = aten.clone(values, memory_format=torch.contiguous_format)
    sums: Tensor = aten.view(aten.mm(share, aten.view(laid_out, [-1, math.prod(places)])), [-1, *places])
    return sums


def push_down_sums(graph: fx.GraphModule, inputs: Sequence[GraphInput]) -> fx.GraphModule:
    """Move the sums of a traced graph before the linear operations that lead to them, in place.

    Args:
        graph: What was traced; without the input `share` it stays as it is.
        inputs: What it takes.

    Returns:
        The same graph module.
    """
    placeholders = zip(inputs, graph.graph.find_nodes(op="placeholder"), strict=True)
    given = {entry.name: node for entry, node in placeholders if entry.batched}
    for product in list(given[SHARE].users) if SHARE in given else []:
        # What `sum_rows` writes: the rows laid out and flat, the product, and the sums in the shape of the rows.
        (total,) = product.users
        (laid_out,) = product.args[1].all_input_nodes
        summed = _Sums(graph, given.values(), share=given[SHARE], before=total).of(laid_out.args[0])
        total.replace_all_uses_with(summed)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


class _Sums:
    """Writes the sums of nodes into a graph, each node once."""

    def __init__(self, graph: fx.GraphModule, given: Collection[fx.Node], *, share: fx.Node, before: fx.Node) -> None:
        self._graph, self._share, self._before = graph.graph, share, before
        self._made: dict[fx.Node, fx.Node] = {}
        self._rows = set(given)
        for node in self._graph.nodes:
            if not self._rows.isdisjoint(node.all_input_nodes):
                self._rows.add(node)

    def of(self, node: fx.Node) -> fx.Node:
        """Return the node that is the sum of a node's rows."""
        if node not in self._made:
            self._made[node] = self._copy(node) if self._spares(node) else self._product(node)
        return self._made[node]

    def _copy(self, node: fx.Node) -> fx.Node:
        """Do to the sums what a linear operation does to the rows."""
        summed = {part: self.of(part) for part in self._linear_in(node)}
        with self._graph.inserting_before(self._before):
            return self._graph.node_copy(node, lambda part: summed.get(part, part))

    def _product(self, node: fx.Node) -> fx.Node:
        places = list(node.meta["val"].shape[1:])
        with self._graph.inserting_before(self._before):
            laid_out = self._graph.call_function(
                aten.clone.default, (node,), {"memory_format": torch.contiguous_format}
            )
            flat = self._graph.call_function(aten.view.default, (laid_out, [-1, math.prod(places)]))
            product = self._graph.call_function(aten.mm.default, (self._share, flat))
            return self._graph.call_function(aten.view.default, (product, [-1, *places]))

    def _spares(self, node: fx.Node) -> bool:
        """Whether a convolution runs on fewer rows when the sum is taken before a node."""
        parts = self._linear_in(node)
        return bool(parts) and (node.target is aten.convolution.default or any(map(self._spares, parts)))

    def _linear_in(self, node: fx.Node) -> list[fx.Node]:
        """Return the inputs with rows that a node is linear in, all alike; none where it is not."""
        parts = [part for part in node.all_input_nodes if part in self._rows]
        first, *others = node.args
        if node.target is aten.convolution.default:
            linear = parts == [first] and others[1] is None
        elif node.target is aten.add.Tensor:
            linear = all(_same_shape(part, node) for part in parts) and parts == [*node.args]
        else:
            linear = node.target is aten.mul.Tensor and len(parts) == 1 and _same_shape(parts[0], node)
        return parts if linear else []


def _same_shape(part: fx.Node, node: fx.Node) -> bool:
    return list(part.meta["val"].shape) == list(node.meta["val"].shape)
