"""Gradients in OpenVINO: right in float32 and in bfloat16, for any batch, and what it reads wrongly is mended."""

import logging

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from keylock.explainers import make
from keylock.export import compile_explainer, compile_gradient_sums
from keylock.imaging.contrast import same_map
from keylock_server.inference.openvino_graphs import OpenVINO
from keylock_server.inference.sessions import Sessions
from keylock_server.inference.way import GraphFiles
from keylock_server.inference.ways import Ways

GENERATOR = np.random.default_rng(0)


@pytest.fixture(scope="module")
def openvino() -> OpenVINO:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    return OpenVINO(threads=1, runs=2)


@pytest.fixture(scope="module")
def gradient() -> bytes:
    """The gradient of a network with strides, max-pooling, both kinds of masks and convolutions by channels."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 7, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU6(), nn.Conv2d(32, 32, 3, 2, 1, groups=32), nn.ReLU6()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)),
    )
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=3 / layer.weight[0].numel() ** 0.5)
    return compile_explainer(network.eval(), make("gradient"), image_shape=(3, 64, 64), num_classes=10)


def images(count: int) -> np.ndarray:
    return GENERATOR.standard_normal((count, 3, 64, 64), np.float32)


def in_onnx_runtime(model: bytes, **rows) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, rows)


def one_node(*nodes, outputs=("map",), constants=(), shape=("batch", 8)) -> bytes:
    """A graph of a few nodes that reads `image`."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, list(shape))
    found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants]
    graph = helper.make_graph(list(nodes), "few", [image], found, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()


@pytest.mark.parametrize(("numbers", "least"), [("float32", 0.99999), ("bfloat16", 0.999)])
@pytest.mark.parametrize("count", [1, 3])
def test_gradients_are_right_in_every_batch(openvino, gradient, numbers, least, count):
    if numbers == "bfloat16" and not openvino.has_bfloat16:
        pytest.skip("this processor does not compute in bfloat16")
    rows = {"image": images(count), "target": np.arange(count) - 1}
    logits, maps = in_onnx_runtime(gradient, **rows)
    found = openvino.open(gradient, {}, numbers=numbers).run(("logits", "map"), rows)
    # The way there, and with it the predicted class, is in float32 whatever the way back is in.
    np.testing.assert_allclose(found[0], logits, rtol=1e-4, atol=1e-5)
    assert min(same_map(one, other) for one, other in zip(found[1], maps, strict=True)) >= least


def test_the_way_back_is_computed_in_bfloat16(openvino, gradient):
    if not openvino.has_bfloat16:
        pytest.skip("this processor does not compute in bfloat16")
    rows = {"image": images(2), "target": np.zeros(2, np.int64)}
    exact, rounded = (
        openvino.open(gradient, {}, numbers=kind).run(("map",), rows)[0] for kind in ("float32", "bfloat16")
    )
    difference = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 1e-4 < difference < 0.05


def test_sums_of_gradients_are_right_in_bfloat16_too(openvino):
    torch.manual_seed(1)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Softplus(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    )
    graph = compile_gradient_sums(network.eval(), image_shape=(3, 64, 64), num_classes=4)
    share = GENERATOR.standard_normal((2, 5), np.float32)
    rows = {"image": images(5), "target": np.arange(5) % 4, "share": share}
    (expected,) = in_onnx_runtime(graph, **rows)
    for numbers in ["float32"] + ["bfloat16"] * openvino.has_bfloat16:
        (found,) = openvino.open(graph, {}, numbers=numbers).run(("sums",), rows)
        assert found.shape == expected.shape == (2, 3, 64, 64)
        assert (
            min(same_map(*pair) for pair in zip(found.reshape(2, -1, 64), expected.reshape(2, -1, 64), strict=True))
            > 0.999
        )


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "output_padding", "size"),
    [
        (3, 2, 1, 1, 5),
        (3, 2, 1, 0, 5),
        (7, 2, 3, 1, 6),
        (1, 2, 0, 1, 4),
        (4, 2, 1, 0, 5),
        (3, 3, 0, 2, 4),
        (5, 4, 2, 3, 3),
    ],
)
def test_transposed_convolutions_are_the_same_written_as_plain_ones(
    openvino, kernel, stride, padding, output_padding, size
):
    weight = GENERATOR.standard_normal((4, 6, kernel, kernel), np.float32)
    node = helper.make_node(
        "ConvTranspose",
        ["spread", "weight"],
        ["map"],
        strides=[stride] * 2,
        pads=[padding] * 4,
        output_padding=[output_padding] * 2,
    )
    target = helper.make_tensor_value_info("target", TensorProto.INT64, ["batch"])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4, size, size])
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["target"], ["class"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["class", "column"], ["factor"]),
            helper.make_node("Mul", ["image", "factor"], ["spread"]),
            node,
        ],
        "back",
        [image, target],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.int64([-1, 1, 1, 1]), "column")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()
    rows = {"image": GENERATOR.standard_normal((3, 4, size, size), np.float32), "target": np.int64([1, 2, -1])}
    (expected,) = in_onnx_runtime(model, **rows)
    (found,) = openvino.open(model, {}, numbers="float32").run(("map",), rows)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("back_first", [True, False])
def test_a_square_weight_serves_the_way_there_and_the_way_back(openvino, back_first):
    # Both products used the same layout of the weight, whichever came first.
    weight = GENERATOR.standard_normal((64, 64), np.float32)
    nodes = [
        helper.make_node("MatMul", ["image", "weight"], ["there"]),
        helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["image", "turned"], ["back"]),
    ]
    order = nodes[1:] + nodes[:1] if back_first else nodes
    model = one_node(*order, outputs=("there", "back"), constants=[("weight", weight)], shape=("batch", 64))
    values = GENERATOR.standard_normal((5, 64), np.float32)
    there, back = openvino.open(model, {}, numbers="float32").run(("there", "back"), {"image": values})
    np.testing.assert_allclose(there, values @ weight, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(back, values @ weight.T, rtol=1e-3, atol=1e-4)


def test_an_input_that_took_another_name_is_handed_over(openvino):
    # Operations that change nothing are left out, and what comes after them lends the input its name.
    axis = ("axis", np.int64([1]))
    nodes = [
        helper.make_node("Unsqueeze", ["image", "axis"], ["column"]),
        helper.make_node("Squeeze", ["column", "axis"], ["same"]),
        helper.make_node("Relu", ["same"], ["map"]),
    ]
    opened = openvino.open(one_node(*nodes, constants=[axis]), {}, numbers="float32")
    values = GENERATOR.standard_normal((3, 8), np.float32)
    assert opened.inputs == {"image"}
    assert opened.outputs == {"map"}
    (found,) = opened.run(("map",), {"image": values})
    np.testing.assert_array_equal(found, np.maximum(values, 0))


def test_what_openvino_reads_wrongly_is_refused_with_the_figure_and_served_by_the_other_runtime(openvino, server_log):
    # Its offset of 0 is read as .5; it is no mask, so that both might be meant.
    server_log.set_level(logging.INFO)
    ramp = helper.make_node("HardSigmoid", ["image"], ["ramp"], alpha=0.2, beta=0.0)
    peak = helper.make_node("ReduceMax", ["ramp", "axis"], ["map"], keepdims=0)
    model = one_node(ramp, peak, constants=[("axis", np.int64([1]))], shape=("batch", 3, 8, 8))
    trial = np.random.default_rng(1).standard_normal((4, 3, 8, 8), np.float32)
    ways = Ways(Sessions("cpu", threads=1), openvino=openvino, runtime="openvino")
    files = GraphFiles("a graph", "whole")
    way, (opened,) = ways.choose(
        files, lambda way, _: ways.open(way, model, {}, public=True), trial, with_trigger=False
    )
    assert way.runtime == "onnxruntime"
    assert "not computed in float32 by openvino, whose answers correlate by" in server_log.text
    np.testing.assert_allclose(opened.run(("map",), {"image": trial})[0], in_onnx_runtime(model, image=trial)[0])
