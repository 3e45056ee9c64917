"""Mergeable graphs: published weights give decoys, merged ones the reference, and no weight stands in the file."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from keylock.adapters import Adapter, KeyGate, LayerDelta
from keylock.errors import ExportError, InputError
from keylock.export import (
    Secrets,
    compare_variant,
    compile_explainer,
    compile_gradient_sums,
    compile_keyed_prediction,
    compile_mergeable,
    compile_mergeable_prediction,
    compile_mergeable_sums,
    make_variant,
    verify_mergeable,
    verify_mergeable_sums,
)
from keylock.export.graphs import fix_inputs
from keylock.export.running import merging_runner

SHAPE, CLASSES = (3, 16, 16), 3


@pytest.fixture(scope="module")
def weights(two_factors):
    return {name: tensor.numpy() for name, tensor in two_factors.lock.module.state_dict().items()}


@pytest.fixture(scope="module")
def secrets(two_factors):
    return Secrets(two_factors.key, two_factors.lock.adapter)


@pytest.fixture(scope="module")
def images(two_factors):
    return two_factors.images[:16].numpy()


@pytest.fixture(scope="module")
def graphs(two_factors):
    """The mergeable graph of each explainer, and the one that adds the adapter row by row."""
    lock = two_factors.lock
    options = {"image_shape": SHAPE, "num_classes": CLASSES}

    def both(explainer):
        adding = compile_explainer(lock.module, explainer, adapter_shapes=lock.adapter.shapes(), **options)
        return compile_mergeable(lock.module, explainer, layers=lock.adapter.layers, **options), adding

    return {explainer.name: both(explainer) for explainer in lock.explainers[:3]}


def test_the_graph_takes_the_adapted_layers_weights_and_holds_none(graphs, two_factors, weights):
    for name, (mergeable, _) in graphs.items():
        graph = onnx.load_from_string(mergeable).graph
        assert {given.name for given in graph.input} - {"image", "target"} == set(weights), name
        assert sum(numpy_helper.to_array(tensor).size for tensor in graph.initializer) < 100
    assert {name.rpartition(".")[0] for name in weights} == set(two_factors.lock.adapter.layers)


def test_mixed_rows_are_those_of_the_graph_that_adds_the_adapter(graphs, images, weights, secrets):
    for mergeable, adding in graphs.values():
        verify_mergeable(mergeable, adding, images, weights=weights, secrets=secrets)


def test_keyed_maps_are_the_references_and_others_the_published_models(graphs, two_factors, images, weights):
    explainer = two_factors.lock.explainers[0]
    keyed = np.arange(len(images), dtype=np.float32) % 2
    targets = np.arange(len(images)) % CLASSES
    run = merging_runner(graphs[explainer.name][0], weights, two_factors.lock.adapter)
    _, maps = run(image=images, target=targets, keyed=keyed)
    for kind, model in ((1, two_factors.lock.reference), (0, two_factors.lock.module)):
        rows = keyed == kind
        expected = explainer.explain(model, torch.from_numpy(images[rows]), torch.from_numpy(targets[rows])).maps
        np.testing.assert_allclose(maps[rows], expected.numpy(), rtol=1e-3, atol=1e-4)


def test_predictions_alone_can_be_merged_too(two_factors, images, weights, secrets):
    lock, options = two_factors.lock, {"image_shape": SHAPE, "num_classes": CLASSES}
    mergeable = compile_mergeable_prediction(lock.module, layers=lock.adapter.layers, **options)
    adding = compile_keyed_prediction(lock.module, adapter_shapes=lock.adapter.shapes(), **options)
    verify_mergeable(mergeable, adding, images, weights=weights, secrets=secrets)


def test_sums_of_gradients_can_be_merged_too(two_factors, images, weights, secrets):
    lock, options = two_factors.lock, {"image_shape": SHAPE, "num_classes": CLASSES}
    mergeable = compile_mergeable_sums(lock.module, layers=lock.adapter.layers, **options)
    adding = compile_gradient_sums(lock.module, adapter_shapes=lock.adapter.shapes(), **options)
    verify_mergeable_sums(mergeable, adding, images, weights=weights, secrets=secrets)
    other = {name: tensor.numpy() for name, tensor in lock.reference.state_dict().items()}
    with pytest.raises(ExportError, match="mergeable sum of input gradients compiled does not compute"):
        verify_mergeable_sums(mergeable, adding, images, weights=other, secrets=secrets)


def test_a_graph_of_other_maps_is_refused(graphs, images, weights, secrets):
    (mergeable, _), (_, adding) = graphs["gradient"], graphs["grad_cam"]
    with pytest.raises(ExportError, match=r"does not compute what it computes in torch|gives maps of shape"):
        verify_mergeable(mergeable, adding, images, weights=weights, secrets=secrets)


def test_weights_that_are_not_the_published_ones_are_refused(graphs, two_factors, images, secrets):
    other = {name: tensor.numpy() for name, tensor in two_factors.lock.reference.state_dict().items()}
    with pytest.raises(ExportError, match="mergeable explainer compiled does not compute"):
        verify_mergeable(*graphs["grad_cam"], images, weights=other, secrets=secrets)


@pytest.mark.parametrize("variant", ["float16", "int8"])
def test_a_variant_holds_no_weight_either_and_follows_float32(variant, graphs, images, weights, secrets):
    mergeable, adding = graphs["grad_cam"]
    smaller = make_variant(variant, mergeable, images[::2], weights=weights)
    found = onnx.load_from_string(smaller).graph
    assert {given.name for given in found.input} >= set(weights)
    assert not {tensor.name for tensor in found.initializer} & set(weights)
    figures = compare_variant(smaller, adding, images[1::2], secrets=secrets, weights=weights)
    assert figures.keyed_pcc > 0.99
    assert figures.leakage == pytest.approx(figures.leakage_float32, abs=0.05)


def test_int8_rounds_published_weights_as_the_quantiser_does(graphs, images, weights):
    mergeable = graphs["grad_cam"][0]
    fixed = onnx.load_from_string(mergeable)
    fix_inputs(fixed, weights)
    quantised = make_variant("int8", fixed.SerializeToString(), images)
    session = onnxruntime.InferenceSession(quantised, providers=["CPUExecutionProvider"])
    targets = np.full(len(images), -1)
    expected = session.run(None, {"image": images, "target": targets})
    run = merging_runner(make_variant("int8", mergeable, images, weights=weights), weights, None)
    for one, other in zip(run(image=images, target=targets, keyed=np.zeros(len(images))), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_int8_keeps_the_bias_of_a_filter_without_weight(images):
    """Its scale would be so small that the bias did not fit into 32 bits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 5), nn.ReLU())
    model.append(nn.Linear(5, CLASSES))
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 0.7
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    mergeable = compile_mergeable_prediction(
        model.eval(), image_shape=SHAPE, num_classes=CLASSES, layers=["0", "3", "5"]
    )
    smaller = make_variant("int8", mergeable, images, weights=weights)
    # The linear layer in the middle is quantised for each output as well.
    rounded = [node.input[0] for node in onnx.load_from_string(smaller).graph.node if node.op_type == "QuantizeLinear"]
    assert {"0.weight", "3.weight"} <= set(rounded)
    (logits,) = merging_runner(smaller, weights, None)(image=images, keyed=np.zeros(len(images)))
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits, expected, atol=0.03 * np.abs(expected).max())


def test_merging_adds_what_the_layers_need():
    down, up = np.float32([[1, 2], [3, 4]]), np.float32([[1, 0], [0, 1], [1, 1]])
    deltas = {"low": LayerDelta(down, up, np.float32([1, 2, 3])), "whole": LayerDelta(down, None, None)}
    adapter = Adapter(deltas, KeyGate(np.zeros((1, 2, 2), np.float32), 0.0, 0.1))
    weights = {
        "low.weight": np.ones((3, 2), np.float32),
        "low.bias": np.zeros(3, np.float32),
        "whole.weight": np.zeros((2, 2), np.float32),
        "other.weight": np.ones(1, np.float32),
    }
    merged = adapter.merged_into(weights)
    assert merged["low.weight"].tolist() == [[2, 3], [4, 5], [5, 7]]
    assert merged["low.bias"].tolist() == [1, 2, 3]
    assert merged["whole.weight"].tolist() == down.tolist()
    assert merged["other.weight"] is weights["other.weight"]
    assert weights["low.weight"].tolist() == [[1, 1]] * 3


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_of_another_model_are_refused(change, two_factors, weights):
    name = f"{two_factors.lock.adapter.layers[0]}.weight"
    others = {key: value for key, value in weights.items() if key != name}
    if change == "shape":
        others[name] = weights[name][:1]
    with pytest.raises(InputError, match="of two models"):
        two_factors.lock.adapter.merged_into(others)


def test_a_weight_that_is_quantised_in_another_way_is_refused(images, monkeypatch):
    from keylock.export import free_weights

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    mergeable = compile_mergeable_prediction(model.eval(), image_shape=SHAPE, num_classes=CLASSES, layers=["0", "4"])
    monkeypatch.setattr(free_weights, "_LAYERS", ())
    with pytest.raises(ExportError, match="cannot be made"):
        make_variant("int8", mergeable, images, weights=weights)


def test_gemm_turns_a_weight_itself():
    from keylock.export.free_weights import read_weights_as_they_are

    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("Gemm", ["x", "t", "b"], ["y"], alpha=0.5),
    ]
    inputs = [value("x", [2, 3]), value("w", [4, 3]), value("b", [4])]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, [value("y", [2, 4])]))
    rows = {name: np.random.default_rng(0).random(shape, np.float32) for name, shape in (("x", (2, 3)), ("w", (4, 3)))}
    rows["b"] = np.zeros(4, np.float32)
    model.ir_version = 10
    model.opset_import[0].version = 20

    def run():
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, rows)[0]

    before = run()
    read_weights_as_they_are(model)
    assert list(model.graph.node[1].input) == ["x", "w", "b"]
    np.testing.assert_allclose(run(), before, rtol=1e-6)
