"""The proof refuses each kind of wrong graph."""

import copy
import functools
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from keylock import explainers, models
from keylock.errors import ExportError, TensorError
from keylock.explainers import Explained
from keylock.export import Side, compile_explainer, compile_prediction, verify_graph, verify_prediction

GRADIENT = explainers.make("gradient")
SHAPE = (3, 16, 16)
TARGETS = np.array([0, 1, -1, 3])


@functools.cache
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return models.create("small-cnn", num_classes=4).eval()


@functools.cache
def compiled() -> bytes:
    return compile_explainer(network(), GRADIENT, image_shape=SHAPE, num_classes=4)


def images(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *SHAPE), dtype=np.float32)


def edited(change) -> bytes:
    model = onnx.load_from_string(compiled())
    change(model.graph)
    return model.SerializeToString()


def test_right_graph_passes():
    verification = verify_graph(compiled(), Side(network()), GRADIENT, images(), TARGETS)

    assert verification.pcc_minimum > 0.9999
    assert verification.pcc_minimum <= verification.pcc_mean <= 1 + 1e-9
    assert 0 <= verification.max_difference < 1e-3
    assert 0 <= verification.max_logits_difference < 1e-5


def test_one_image_is_enough():
    assert verify_graph(compiled(), Side(network()), GRADIENT, images(1), np.array([-1])).pcc_mean > 0.9999


def test_network_keeps_its_modes():
    model = copy.deepcopy(network()).train()
    model.stage1.eval()
    verify_graph(compiled(), Side(model), GRADIENT, images(), TARGETS)
    assert (model.training, model.stage1.training, model.stage2.training) == (True, False, True)


def test_graph_of_other_weights_is_refused():
    other = models.create("small-cnn", num_classes=4).eval()
    with pytest.raises(ExportError, match="logits differ"):
        verify_graph(compiled(), Side(other), GRADIENT, images(), TARGETS)
    with pytest.raises(ExportError, match="logits differ"):
        verify_prediction(compile_prediction(network(), image_shape=SHAPE, num_classes=4), Side(other), images())


def test_graph_of_another_method_is_refused():
    @dataclass(frozen=True)
    class Squared:
        name = "squared"
        second_order = True

        def explain(
            self, model: nn.Module, images: Tensor, targets: Tensor, *, create_graph: bool = False
        ) -> Explained:
            logits, maps = GRADIENT.explain(model, images, targets)
            return Explained(logits, maps**2)

    with pytest.raises(ExportError, match="correlate"):
        verify_graph(compiled(), Side(network()), Squared(), images(), TARGETS)


def test_graph_that_explains_another_class_for_minus_one_is_refused():
    def explain_the_least_likely(graph: onnx.GraphProto) -> None:
        next(node for node in graph.node if node.op_type == "ArgMax").op_type = "ArgMin"

    with pytest.raises(ExportError, match="predicted class"):
        verify_graph(edited(explain_the_least_likely), Side(network()), GRADIENT, images(), np.array([0, 1, 2, 3]))


def test_graph_with_a_fixed_batch_is_refused():
    def fix(graph: onnx.GraphProto) -> None:
        graph.output[1].type.tensor_type.shape.dim[0].dim_value = 7

    with pytest.raises(ExportError, match=r"batches of 7 .*'map'"):
        verify_graph(edited(fix), Side(network()), GRADIENT, images(), TARGETS)


def test_explainer_that_mixes_the_images_of_a_batch_is_refused():
    @dataclass(frozen=True)
    class Mixing:
        name = "mixing"
        second_order = True

        def explain(
            self, model: nn.Module, images: Tensor, targets: Tensor, *, create_graph: bool = False
        ) -> Explained:
            logits, maps = GRADIENT.explain(model, images, targets)
            return Explained(logits, (maps - 2 * maps.mean(dim=0, keepdim=True)).abs())

    graph = compile_explainer(network(), Mixing(), image_shape=SHAPE, num_classes=4)
    with pytest.raises(ExportError, match="mixes the images"):
        verify_graph(graph, Side(network()), Mixing(), images(), TARGETS)


@pytest.mark.parametrize(
    ("batch", "targets"),
    [
        (images().astype(np.float64), TARGETS),
        (images()[0], TARGETS),
        (images(0), np.zeros(0, dtype=np.int64)),
        (images(), TARGETS[:2]),
        (images(), TARGETS.astype(np.int32)),
    ],
)
def test_wrong_input_is_refused(batch, targets):
    with pytest.raises(TensorError, match=r"give (float32|one int64)"):
        verify_graph(compiled(), Side(network()), GRADIENT, batch, targets)
