"""Graphs in smaller numbers: they follow float32, open for the key alone, and say where they do not."""

import numpy as np
import onnx
import pytest

from keylock.errors import ExportError, UnknownNameError
from keylock.export import (
    VARIANTS,
    Secrets,
    VariantFigures,
    compare_variant,
    compile_explainer,
    compile_prediction,
    make_variant,
    suits,
)

SHAPE = (3, 16, 16)


@pytest.fixture(scope="module")
def graph(two_factors):
    lock = two_factors.lock
    return compile_explainer(
        lock.module, lock.explainers[0], image_shape=SHAPE, num_classes=3, adapter_shapes=lock.adapter.shapes()
    )


@pytest.fixture(scope="module")
def secrets(two_factors):
    return Secrets(two_factors.key, two_factors.lock.adapter, two_factors.lock.reference)


@pytest.fixture(scope="module")
def images(two_factors):
    return two_factors.images[:32].numpy()


@pytest.fixture(scope="module", params=["float16", "int8"])
def variant(request, graph, images):
    return request.param, make_variant(request.param, graph, images[::2])


def test_a_variant_takes_and_gives_what_the_graph_does(variant, graph):
    found, expected = (onnx.load_from_string(one).graph for one in (variant[1], graph))
    for one, other in ((found.input, expected.input), (found.output, expected.output)):
        assert [(value.name, value.type) for value in one] == [(value.name, value.type) for value in other]


def test_a_variant_follows_float32_on_keyed_rows_and_stays_shut_on_others(variant, graph, secrets, images):
    figures = compare_variant(variant[1], graph, images[1::2], secrets=secrets)
    assert figures.keyed_pcc > 0.99
    assert figures.leakage == pytest.approx(figures.leakage_float32, abs=0.05)
    assert figures.agreement > 0.9
    # The comparison says something: keyed and keyless maps differ in this lock.
    assert figures.leakage_float32 < 0.95


def test_a_variant_computes_in_its_numbers(variant, graph):
    name, content = variant
    found = onnx.load_from_string(content).graph
    kinds = {tensor.data_type for tensor in found.initializer if np.prod(tensor.dims) > 16}
    if name == "int8":
        assert onnx.TensorProto.INT8 in kinds
        assert sum(node.op_type == "QuantizeLinear" for node in found.node) >= 4
    else:
        assert kinds == {onnx.TensorProto.FLOAT16}
    assert len(content) < len(graph)


def test_nothing_secret_is_in_a_variant(variant, two_factors):
    _, content = variant
    arrays = {"key": two_factors.key.reveal(), **two_factors.lock.adapter.tensors()}
    for array in arrays.values():
        if array.size >= 4:
            for kind in (np.float32, np.float16):
                assert array.ravel()[:4].astype(kind).tobytes() not in content
    # No range of the adapter's weights either, nor of what they compute before it is added to the network's own.
    sealed = {name for name in arrays if name.startswith("delta.")}
    for node in onnx.load_from_string(content).graph.node:
        inputs = [name in sealed for name in node.input]
        if any(inputs) and (node.op_type != "Add" or all(inputs)):
            sealed.update(node.output)
        assert node.op_type != "QuantizeLinear" or not any(inputs)


def test_predictions_have_variants_too(two_factors, images):
    graph = compile_prediction(two_factors.lock.module, image_shape=SHAPE)
    figures = compare_variant(make_variant("int8", graph, images[::2]), graph, images[1::2])
    assert figures.agreement > 0.9
    assert figures.keyed_pcc is None


def test_what_loses_too_much_says_so():
    assert VariantFigures(1.0).shortfall is None
    assert VariantFigures(1.0, 0.995, 0.04, 0.0).shortfall is None
    assert "90.0% of the predictions" in VariantFigures(0.9).shortfall
    assert "correlate with 0.980" in VariantFigures(1.0, 0.98, 0.0, 0.0).shortfall
    assert "correlate with true ones by -0.100" in VariantFigures(1.0, 0.999, -0.1, 0.02).shortfall
    assert VariantFigures(1.0, float("nan"), 0.0, 0.0).shortfall is not None


def test_gradients_stay_in_numbers_that_are_fine_enough(two_factors):
    suited = {one.name: [name for name in VARIANTS if suits(name, one)] for one in two_factors.lock.explainers}
    assert suited == {
        "grad_cam": ["float16", "int8"],
        "gradient": ["float16"],
        "visual_backprop": ["float16", "int8"],
    }


def test_the_layer_that_decides_stays_in_float32(variant):
    graph = onnx.load_from_string(variant[1]).graph
    made = {name: node for node in graph.node for name in node.output}
    assert made["logits"].op_type == "Add" or variant[0] == "float16"
    if variant[0] == "int8":
        (layer,) = [made[name] for name in made["logits"].input if made[name].op_type == "Gemm"]
        assert not any(made[name].op_type == "DequantizeLinear" for name in layer.input if name in made)


def test_an_unknown_variant_and_an_unusable_graph_are_refused(graph, images):
    with pytest.raises(UnknownNameError, match="int8"):
        make_variant("int4", graph, images)
    with pytest.raises(ExportError, match="the variant int8 of a graph cannot be made"):
        make_variant("int8", graph, images[:, :2])
