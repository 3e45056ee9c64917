import pytest
import torch
from torch import Tensor

from keylock.errors import ExportError
from keylock.export.inputs import row_inputs
from keylock.export.simplify import simplify
from keylock.export.tracing import trace
from keylock.graphs.contract import PREDICTION

WEIGHT = torch.arange(12.0).reshape(3, 4)


def operations(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def test_equal_work_is_done_once():
    def function(image: Tensor) -> tuple[Tensor, ...]:
        return ((image * 2).exp() + (image * 2).exp() + (image * 3).exp(),)

    graph = simplify(trace(function, row_inputs(PREDICTION, (3, 2, 2))))

    assert operations(graph).count("aten.mul.Tensor") == 2
    assert operations(graph).count("aten.exp.default") == 2
    image = torch.randn(2, 3, 2, 2)
    torch.testing.assert_close(graph(image)[0], function(image)[0])


def test_sizes_are_read_off_the_input_once():
    def function(image: Tensor) -> tuple[Tensor, ...]:
        doubled = torch.cat([image, image], dim=3)
        flat = doubled.reshape(doubled.numel() // 12, 12)
        return (flat.exp().reshape(doubled.shape[0], 12) + image.reshape(image.numel() // 6, 6).repeat(1, 2),)

    graph = simplify(trace(function, row_inputs(PREDICTION, (3, 2, 1))))

    sizes = [node for node in graph.graph.nodes if isinstance(node.meta.get("val"), torch.SymInt)]
    assert [(node.target, node.args[0].op) for node in sizes] == [(torch.ops.aten.sym_size.int, "placeholder")]
    image = torch.randn(2, 3, 2, 1)
    torch.testing.assert_close(graph(image)[0], function(image)[0])


def test_work_on_constants_is_done_in_advance():
    def function(image: Tensor) -> tuple[Tensor, ...]:
        return (image.flatten(1) @ (WEIGHT.flip(0) * 2).exp(),)

    graph = simplify(trace(function, row_inputs(PREDICTION, (3, 1, 1))))

    assert not {"aten.flip.default", "aten.exp.default"} & set(operations(graph))
    image = torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(graph(image)[0], function(image)[0])


def test_work_nobody_reads_is_dropped():
    def function(image: Tensor) -> tuple[Tensor, ...]:
        image.exp()
        return (image + 1,)

    assert operations(simplify(trace(function, row_inputs(PREDICTION, (3, 1, 1))))) == ["aten.add.Tensor"]


def test_work_in_place_keeps_its_meaning():
    def function(image: Tensor) -> tuple[Tensor, ...]:
        first = image * 2
        first.add_(1)
        return (first + image * 2,)

    graph = simplify(trace(function, row_inputs(PREDICTION, (3, 1, 1))))

    image = torch.randn(5, 3, 1, 1)
    torch.testing.assert_close(graph(image)[0], 4 * image + 1)


def test_random_numbers_are_refused():
    with pytest.raises(ExportError, match="random numbers"):
        simplify(trace(lambda image: (torch.dropout(image, 0.5, True),), row_inputs(PREDICTION, (3, 1, 1))))


def test_the_weights_of_a_class_are_looked_up():
    def function(image: Tensor) -> tuple[Tensor, ...]:
        inputs = image.flatten(1).detach().requires_grad_()
        logits = inputs @ WEIGHT + inputs.square() @ WEIGHT
        classes = logits.argmax(dim=1, keepdim=True)
        with torch.enable_grad():
            scores = (inputs @ WEIGHT).gather(1, classes)
            return (torch.autograd.grad(scores.sum(), inputs)[0],)

    graph = simplify(trace(function, row_inputs(PREDICTION, (3, 1, 1))))

    assert "aten.index_select.default" in operations(graph)
    assert "aten.scatter_add.default" not in operations(graph)
    image = torch.randn(5, 3, 1, 1)
    torch.testing.assert_close(graph(image)[0], function(image)[0])
