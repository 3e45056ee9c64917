"""Graphs that loops ask, and the loops over them, against torch: keyed rows are the reference, others the published."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from keylock.errors import ExportError, ModelError
from keylock.explainers import make
from keylock.export import (
    Secrets,
    compile_gradient_sums,
    compile_keyed_prediction,
    verify_gradient_sums,
    verify_keyed_prediction,
    verify_loop,
)
from keylock.loops import LOOPS, share_of
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
def graphs(two_factors):
    """The graph that a kind of loop asks."""
    lock = two_factors.lock
    given = {"image_shape": SHAPE, "num_classes": 3, "adapter_shapes": lock.adapter.shapes()}
    return {
        "logits": compile_keyed_prediction(lock.module, **given),
        "gradient": compile_gradient_sums(lock.module, **given),
    }


@pytest.fixture
def secrets(two_factors):
    return Secrets(two_factors.key, two_factors.lock.adapter, two_factors.lock.reference)


@pytest.fixture
def images(two_factors):
    return two_factors.images[:5].numpy()


def test_keyed_predictions_are_the_reference_on_keyed_rows_alone(two_factors, graphs, images):
    session = onnxruntime.InferenceSession(graphs["logits"], providers=["CPUExecutionProvider"])
    secret = {"key": two_factors.key.reveal(), **two_factors.lock.adapter.tensors()}
    keyed = np.array([1, 0, 0, 1, 1], np.float32)
    (logits,) = session.run(["logits"], {"image": images, "keyed": keyed, **secret})

    for rows, model in ((keyed == 1, two_factors.lock.reference), (keyed == 0, two_factors.lock.module)):
        expected = model(torch.from_numpy(images[rows])).numpy()
        np.testing.assert_allclose(logits[rows], expected, rtol=1e-3, atol=1e-5)
    inputs = {value.name for value in onnx.load_from_string(graphs["logits"]).graph.input}
    assert inputs == {"image", "keyed", "key", *two_factors.lock.adapter.shapes()}


def test_the_proof_of_keyed_predictions_covers_both_kinds_of_rows(two_factors, graphs, images, secrets):
    lock = two_factors.lock
    assert verify_keyed_prediction(graphs["logits"], lock.module, images, secrets=secrets) < 1e-4
    assert verify_keyed_prediction(graphs["logits"], lock.module, images) < 1e-4
    with pytest.raises(ExportError, match="logits differ"):
        verify_keyed_prediction(graphs["logits"], lock.reference, images)
    another = Secrets(secrets.key, secrets.adapter, lock.module)
    with pytest.raises(ExportError, match="logits differ"):
        verify_keyed_prediction(graphs["logits"], lock.module, images, secrets=another)


def input_gradients(model, images, targets):
    inputs = torch.from_numpy(images).requires_grad_()
    model(inputs)[torch.arange(len(images)), torch.from_numpy(targets)].sum().backward()
    return inputs.grad.numpy()


@pytest.mark.parametrize("images_of", [[0, 0, 1, 0, 1], [0], [0, 1, 2, 3, 4]])
def test_sums_of_gradients_are_weighted_and_keep_their_signs(images_of, two_factors, graphs, images, secrets):
    of, targets, keyed = np.array(images_of), np.array([0, 1, 2, 2, 0]), np.array([1, 0, 0, 1, 1], np.float32)
    rows, lock = len(of), two_factors.lock
    share = share_of(of) * np.linspace(-1, 2, rows, dtype=np.float32)
    # Keyed and keyless rows are in one sum here, which no loop asks for.
    (sums,) = onnxruntime.InferenceSession(graphs["gradient"], providers=["CPUExecutionProvider"]).run(
        ["sums"],
        {
            "image": images[:rows],
            "target": targets[:rows],
            "share": share,
            "keyed": keyed[:rows],
            "key": secrets.key.reveal(),
            **secrets.adapter.tensors(),
        },
    )
    true, decoys = (input_gradients(model, images, targets) for model in (lock.reference, lock.module))
    expected = np.tensordot(share, np.where(keyed[:, None, None, None] > 0, true, decoys)[:rows], 1)
    np.testing.assert_allclose(sums, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    assert (sums < 0).any()


def test_rows_are_summed_before_the_first_layer(graphs):
    nodes = list(onnx.load_from_string(graphs["gradient"]).graph.node)
    sums = [index for index, node in enumerate(nodes) if "share" in node.input]
    assert len(sums) == 2  # What the adapter adds to the first layer has a sum of its own.
    behind = [node.op_type for node in nodes[sums[-1] :]]
    assert behind[-1] == "Add"
    assert "Conv" in behind


def test_sums_of_a_transformer_are_taken_before_its_patches(images):
    torch.manual_seed(0)
    network = ViT(num_classes=3, image_size=16, width=24, depth=1).eval()
    graph = compile_gradient_sums(network, image_shape=SHAPE, num_classes=3)
    nodes = list(onnx.load_from_string(graph).graph.node)
    (place,) = (index for index, node in enumerate(nodes) if "share" in node.input)
    assert "ConvTranspose" in {node.op_type for node in nodes[place:]}
    assert verify_gradient_sums(graph, network, images, np.array([0, 1, 2, 0, -1])).pcc_minimum > 0.999


def test_the_proof_of_sums_covers_both_kinds_of_rows(two_factors, graphs, images, secrets):
    lock, targets = two_factors.lock, np.array([0, 1, 2, -1, -1])
    found = verify_gradient_sums(graphs["gradient"], lock.module, images, targets, secrets=secrets)
    assert found.pcc_minimum > 0.999
    with pytest.raises(ExportError, match="sum of input gradients"):
        verify_gradient_sums(graphs["gradient"], lock.reference, images, targets)
    another = Secrets(secrets.key, secrets.adapter, lock.module)
    with pytest.raises(ExportError, match="sum of input gradients"):
        verify_gradient_sums(graphs["gradient"], lock.module, images, targets, secrets=another)


def test_sums_of_a_network_without_a_linear_beginning_are_right(images):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Tanh(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3)).eval()
    graph = compile_gradient_sums(network, image_shape=SHAPE, num_classes=3)
    assert [node.op_type for node in onnx.load_from_string(graph).graph.node][-2:] == ["MatMul", "Reshape"]
    assert verify_gradient_sums(graph, network, images, np.array([0, 1, 2, 0, -1])).pcc_minimum > 0.999


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_over_a_graph_is_the_explainer_in_torch(name, two_factors, graphs, images, secrets):
    explainer, lock = make(name, **SMALL[name]), two_factors.lock
    found = verify_loop(
        graphs[explainer.reads],
        lock.module,
        explainer,
        images[:2],
        np.array([-1, 1]),
        predictions=graphs["logits"],
        secrets=secrets,
    )
    assert found.pcc_minimum > 0.999
    assert found.max_difference < 1e-2
    assert found.max_logits_difference < 1e-4


def test_a_loop_over_another_network_is_refused(two_factors, graphs, images):
    with pytest.raises(ExportError, match="occlusion"):
        verify_loop(graphs["logits"], two_factors.lock.reference, make("occlusion"), images[:1], np.array([-1]))


def test_the_number_of_classes_is_checked(two_factors):
    with pytest.raises(ModelError, match="4 classes"):
        compile_keyed_prediction(two_factors.lock.reference, image_shape=SHAPE, num_classes=4)
