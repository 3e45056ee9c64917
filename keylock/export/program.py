"""A traced graph as the program that torch's ONNX exporter reads.

The exporter takes any program apart into operations that it knows, by tracing all of it a second and a third time. What
arrives here is flat already, so it is given as it is, and taken apart only where it has an operation that the exporter
does not know.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils import _pytree as pytree

__all__ = ["program_of"]


def program_of(graph: fx.GraphModule) -> ExportedProgram:
    """Return a program that computes what a traced graph computes.

    Args:
        graph: Of ATen operations on tensors; its attributes are constants, and the example values of its inputs are
            fake tensors of one mode. It stays as it is.
    """
    written = fx.Graph()
    constants: dict[str, Tensor] = {}
    places: dict[str, fx.Node] = {}
    copies: dict[fx.Node, fx.Node] = {}
    inputs = list(graph.graph.find_nodes(op="placeholder"))
    mode = inputs[0].meta["val"].fake_mode
    for node in graph.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if name not in places:
            constants[name] = getattr(graph, name).detach()
            places[name] = written.placeholder(f"constant_{name}")
            places[name].meta = {"val": mode.from_tensor(constants[name], static_shapes=True)}
        copies[node] = places[name]
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            copies[node] = written.placeholder(node.name)
            copies[node].meta = dict(node.meta)
        elif node.op != "get_attr":
            copies[node] = written.node_copy(node, copies.__getitem__)
            _add_value(copies[node], mode)
    specs = [
        InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(node.name), name, None) for name, node in places.items()
    ]
    specs += [InputSpec(InputKind.USER_INPUT, TensorArgument(copies[node].name), None) for node in inputs]
    answers: Sequence[fx.Node] = written.output_node().args[0]  # type: ignore[assignment]
    results = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in answers]
    taken, given = pytree.tree_structure((tuple(inputs), {})), pytree.tree_structure(tuple(answers))
    return _Program(
        root=nn.Module(),
        graph=written,
        graph_signature=ExportGraphSignature(specs, results),
        state_dict={},
        range_constraints={},
        module_call_graph=[ModuleCallEntry("", ModuleCallSignature([], [], taken, given))],
        constants={**constants},
    )


class _Program(ExportedProgram):
    """A program of a flat graph."""

    def run_decompositions(self, decomp_table: Mapping[Any, Any] | None = None, **options: Any) -> ExportedProgram:  # noqa: ANN401 - as of the base
        table = {} if decomp_table is None else decomp_table
        if any(node.target in table for node in self.graph.nodes):
            whole: ExportedProgram = super().run_decompositions(decomp_table, **options)
            return whole
        return self


def _add_value(node: fx.Node, mode: FakeTensorMode) -> None:
    """Compute what a node's value is like, where it was added after tracing or comes from constants alone."""
    # The exporter notes where a node comes from, and warns where nothing says so.
    node.meta["nn_module_stack"] = {}
    known = "val" in node.meta and all(_belongs(value, mode) for value in pytree.tree_leaves(node.meta["val"]))
    if node.op != "call_function" or known:
        return
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    with mode:
        node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]


def _belongs(value: object, mode: FakeTensorMode) -> bool:
    return not isinstance(value, Tensor) or getattr(value, "fake_mode", None) is mode
