"""Graphs that are compiled in one go, and how a traced graph reaches torch's exporter."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from keylock.errors import ExportError, ModelError
from keylock.explainers import GradCAM, make
from keylock.export import compile_explainer, compile_many, compile_prediction
from keylock.export import program as programs
from keylock.models import arrays_of

SHAPE = (3, 16, 16)
ROWS = {"image": np.float32(np.random.default_rng(0).normal(size=(5, *SHAPE))), "target": np.array([0, -1, 2, 1, -1])}


class _Mending(nn.Module):
    """Has an operation that torch's exporter knows only in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(torch.nan_to_num(self.first(images)).mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def lock(sealed_lock):
    return sealed_lock.lock


@pytest.fixture(scope="module")
def given(lock):
    return {"image_shape": SHAPE, "num_classes": 3, "weights": lock.delta.names}


@pytest.fixture(scope="module")
def together(lock, given):
    prediction, explainers = compile_many(lock.module, lock.explainers, **given)
    return {"prediction": prediction, **explainers}


@pytest.fixture(scope="module")
def alone(lock, given):
    graphs = {one.name: compile_explainer(lock.module, one, **given) for one in lock.explainers}
    return {"prediction": compile_prediction(lock.module, **given), **graphs}


def inputs_of(graph: bytes) -> list[str]:
    return [value.name for value in onnx.load_from_string(graph).graph.input]


def operations_of(graph: bytes) -> list[str]:
    return sorted(node.op_type for node in onnx.load_from_string(graph).graph.node)


def run(graph: bytes, **values: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: values[name] for name in inputs_of(graph)}), strict=True))


def test_graphs_compiled_together_are_those_compiled_alone(together, alone, lock):
    assert list(together) == ["prediction", *(one.name for one in lock.explainers)]
    weights = arrays_of(lock.module)
    for name, graph in together.items():
        assert inputs_of(graph) == inputs_of(alone[name])
        assert operations_of(graph) == operations_of(alone[name])
        assert len(graph) == pytest.approx(len(alone[name]), rel=0.01)
        found, expected = (run(one, **ROWS, **weights) for one in (graph, alone[name]))
        assert list(found) == list(expected)
        for output, values in expected.items():
            np.testing.assert_allclose(found[output], values, rtol=1e-5, atol=1e-6)


def test_graphs_compiled_together_are_the_same_every_time(together, lock, given):
    prediction, explainers = compile_many(lock.module, lock.explainers, **given)
    assert {"prediction": prediction, **explainers} == together


def test_no_graph_holds_what_another_needs(together):
    nodes = {name: set(operations_of(graph)) for name, graph in together.items()}
    # The gradient at the input takes the way back through every convolution; predictions and Grad-CAM do not.
    assert "ConvTranspose" in nodes["gradient"]
    assert "ConvTranspose" not in nodes["prediction"] | nodes["grad_cam"]


def test_explainers_that_show_the_same_have_a_graph_each(lock, given):
    class Other(GradCAM):
        name = "other"

    grad_cam = lock.explainers[0]
    _, graphs = compile_many(lock.module, [grad_cam, Other(**grad_cam.parameters)], **given)
    weights = arrays_of(lock.module)
    first, second = (run(graphs[name], **ROWS, **weights) for name in ("grad_cam", "other"))
    assert list(first) == list(second) == ["logits", "map"]
    np.testing.assert_array_equal(first["map"], second["map"])


def test_another_number_of_classes_is_refused(lock, given):
    with pytest.raises(ModelError, match="4 classes were named"):
        compile_many(lock.module, lock.explainers, **(given | {"num_classes": 4}))


def test_one_explainer_that_cannot_be_compiled_spoils_all(lock, given):
    with pytest.raises(ExportError):
        compile_many(lock.module, [*lock.explainers, make("rise")], **given)


@pytest.mark.parametrize("network", [_Mending(), nn.Sequential(nn.Conv2d(3, 3, 3), nn.AvgPool2d(14), nn.Flatten())])
def test_only_what_the_exporter_does_not_know_is_taken_apart(network, monkeypatch):
    taken_apart = []
    whole = torch.export.ExportedProgram.run_decompositions

    def note(program, *arguments, **options):
        taken_apart.append(program)
        return whole(program, *arguments, **options)

    monkeypatch.setattr(programs.ExportedProgram, "run_decompositions", note)
    graph = compile_prediction(network.eval(), image_shape=SHAPE, num_classes=3)

    assert len(taken_apart) == isinstance(network, _Mending)
    expected = network(torch.from_numpy(ROWS["image"])).detach().numpy()
    np.testing.assert_allclose(run(graph, **ROWS)["logits"], expected, rtol=1e-5, atol=1e-6)
