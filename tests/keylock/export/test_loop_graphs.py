"""Graphs that loops ask, and the loops over them, against torch: on both sides of a lock."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from keylock.errors import ExportError
from keylock.explainers import make
from keylock.export import Side, compile_gradient_sums, compile_prediction, verify_gradient_sums, verify_loop
from keylock.iterative import LOOPS, share_of
from keylock.models import arrays_of
from keylock.models.vit import ViT

SHAPE = (3, 16, 16)
SMALL = {
    "occlusion": {"patch": 8},
    "rise": {"masks": 30, "cells": 3},
    "lime": {"samples": 30, "segments": 9},
    "kernel_shap": {"samples": 30, "segments": 9},
    "integrated_gradients": {"steps": 3},
    "smooth_grad": {"samples": 3},
}


@pytest.fixture(scope="module")
def graphs(sealed_lock):
    """The graph that a kind of loop asks."""
    lock = sealed_lock.lock
    given = {"image_shape": SHAPE, "num_classes": 3, "weights": lock.delta.names}
    return {
        "logits": compile_prediction(lock.module, **given),
        "gradient": compile_gradient_sums(lock.module, **given),
    }


@pytest.fixture(params=["published", "opened"])
def side(request, sealed_lock):
    lock = sealed_lock.lock
    if request.param == "published":
        return Side(lock.module)
    return Side(lock.reference, weights=lock.delta.added_to(arrays_of(lock.module)))


@pytest.fixture
def images(sealed_lock):
    return sealed_lock.images[:5].numpy()


def input_gradients(model, images, targets):
    inputs = torch.from_numpy(images).requires_grad_()
    model(inputs)[torch.arange(len(images)), torch.from_numpy(targets)].sum().backward()
    return inputs.grad.numpy()


@pytest.mark.parametrize("images_of", [[0, 0, 1, 0, 1], [0], [0, 1, 2, 3, 4]])
def test_sums_of_gradients_are_weighted_and_keep_their_signs(images_of, graphs, images, side):
    of, targets = np.array(images_of), np.array([0, 1, 2, 2, 0])
    rows = len(of)
    share = share_of(of) * np.linspace(-1, 2, rows, dtype=np.float32)
    given = {"image": images[:rows], "target": targets[:rows], "share": share}
    (sums,) = side.open(graphs["gradient"]).run(["sums"], given)
    expected = np.tensordot(share, input_gradients(side.module, images[:rows], targets[:rows]), 1)
    np.testing.assert_allclose(sums, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert (sums < 0).any()


def test_rows_are_summed_before_the_first_layer(graphs):
    nodes = list(onnx.load_from_string(graphs["gradient"]).graph.node)
    (place,) = (index for index, node in enumerate(nodes) if "share" in node.input)
    assert {"Conv", "ConvTranspose"} & {node.op_type for node in nodes[place:]}


def test_sums_of_a_transformer_are_taken_before_its_patches(images):
    torch.manual_seed(0)
    network = ViT(num_classes=3, image_size=16, width=24, depth=1).eval()
    graph = compile_gradient_sums(network, image_shape=SHAPE, num_classes=3)
    nodes = list(onnx.load_from_string(graph).graph.node)
    (place,) = (index for index, node in enumerate(nodes) if "share" in node.input)
    assert "ConvTranspose" in {node.op_type for node in nodes[place:]}
    assert verify_gradient_sums(graph, Side(network), images, np.array([0, 1, 2, 0, -1])).pcc_minimum > 0.999


def test_sums_of_a_network_without_a_linear_beginning_are_right(images):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Tanh(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3)).eval()
    graph = compile_gradient_sums(network, image_shape=SHAPE, num_classes=3)
    assert [node.op_type for node in onnx.load_from_string(graph).graph.node][-2:] == ["MatMul", "Reshape"]
    assert verify_gradient_sums(graph, Side(network), images, np.array([0, 1, 2, 0, -1])).pcc_minimum > 0.999


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_over_a_graph_is_the_explainer_in_torch(name, graphs, images, side):
    explainer = make(name, **SMALL[name])
    found = verify_loop(
        graphs[explainer.reads], side, explainer, images[:2], np.array([-1, 1]), predictions=graphs["logits"]
    )
    assert found.pcc_minimum > 0.999
    assert found.max_difference < 1e-2
    assert found.max_logits_difference < 1e-4


def test_a_loop_over_another_network_is_refused(sealed_lock, graphs, images):
    wrong = Side(sealed_lock.lock.reference, weights=arrays_of(sealed_lock.lock.module))
    with pytest.raises(ExportError, match="occlusion"):
        verify_loop(graphs["logits"], wrong, make("occlusion"), images[:1], np.array([-1]))


def test_a_graph_that_was_given_no_weights_does_not_run(graphs, images):
    session = onnxruntime.InferenceSession(graphs["logits"], providers=["CPUExecutionProvider"])
    with pytest.raises(ValueError, match="Required inputs"):
        session.run(None, {"image": images})
