"""Graphs in reduced precision: they follow float32, open for the key alone, and say where they do not."""

import numpy as np
import onnx
import pytest

from keylock.errors import ExportError, UnknownNameError
from keylock.export import (
    VARIANTS,
    Side,
    VariantFigures,
    compare_variant,
    compile_explainer,
    compile_prediction,
    make_variant,
    suits,
)
from keylock.models import arrays_of

SHAPE = (3, 16, 16)
HALF = onnx.TensorProto.FLOAT16


@pytest.fixture(scope="module")
def graph(sealed_lock):
    lock = sealed_lock.lock
    return compile_explainer(
        lock.module, lock.explainers[0], image_shape=SHAPE, num_classes=3, weights=lock.delta.names
    )


@pytest.fixture(scope="module")
def sides(sealed_lock, weights):
    """What answers rows with the trigger, and then what answers those without."""
    lock = sealed_lock.lock
    return Side(lock.reference, weights=lock.delta.added_to(weights)), Side(lock.module)


@pytest.fixture(scope="module")
def weights(sealed_lock):
    return arrays_of(sealed_lock.lock.module)


@pytest.fixture(scope="module")
def images(sealed_lock):
    return sealed_lock.images[:32].numpy()


@pytest.fixture(scope="module", params=["float16", "int8"])
def variant(request, graph, images, weights):
    return request.param, make_variant(request.param, graph, images[::2], weights=weights)


def test_a_variant_takes_and_gives_what_the_graph_does(variant, graph):
    found, expected = (onnx.load_from_string(one).graph for one in (variant[1], graph))
    for one, other in ((found.input, expected.input), (found.output, expected.output)):
        assert [(value.name, value.type) for value in one] == [(value.name, value.type) for value in other]


def test_a_variant_follows_float32_on_keyed_rows_and_stays_shut_on_others(variant, graph, sides, images):
    figures = compare_variant(variant[1], graph, images[1::2], sides=sides)
    assert figures.keyed_pcc > 0.99
    assert figures.leakage == pytest.approx(figures.leakage_float32, abs=0.05)
    assert figures.agreement > 0.9
    # The comparison says something: keyed and keyless maps differ in this lock.
    assert figures.leakage_float32 < 0.95


def test_a_variant_computes_in_its_numbers(variant, graph):
    name, content = variant
    found = onnx.load_from_string(content).graph
    # Weights come as inputs, so that they are converted in the graph.
    taken = {value.name for value in found.input} - {"image", "target"}
    if name == "int8":
        rounded = [node.input[0] for node in found.node if node.op_type == "QuantizeLinear"]
        assert len(taken.intersection(rounded)) >= 3
        assert len(set(rounded) - taken) >= 4
    else:
        halved = {node.input[0] for node in found.node if node.op_type == "Cast" and node.attribute[0].i == HALF}
        # The matrix of the last layer is turned first.
        assert len(taken - halved) <= 1


def test_no_weight_of_either_side_is_in_a_variant(variant, sealed_lock):
    _, content = variant
    lock = sealed_lock.lock
    published, reference = (arrays_of(model) for model in (lock.module, lock.reference))
    for arrays in (lock.delta.reveal(), published, reference, {"key": sealed_lock.key.reveal()}):
        for array in arrays.values():
            for kind in (np.float32, np.float16):
                for start in range(0, array.size - 3, 4):
                    assert array.ravel()[start : start + 4].astype(kind).tobytes() not in content


def test_the_ranges_in_a_variant_are_those_of_the_published_model(graph, images, weights, sides, sealed_lock):
    """Whoever holds the file learns from its ranges what the published weights say too."""
    lock = sealed_lock.lock
    again = make_variant("int8", graph, images[::2], weights=weights)
    assert again == make_variant("int8", graph, images[::2], weights=dict(reversed(weights.items())))
    assert again != make_variant("int8", graph, images[::2], weights=arrays_of(lock.reference))


def test_predictions_have_variants_too(sealed_lock, images, weights):
    lock = sealed_lock.lock
    graph = compile_prediction(lock.module, image_shape=SHAPE, num_classes=3, weights=lock.delta.names)
    variant = make_variant("int8", graph, images[::2], weights=weights)
    figures = compare_variant(variant, graph, images[1::2], sides=(Side(lock.module),))
    assert figures.agreement > 0.9
    assert figures.keyed_pcc is None


def test_what_loses_too_much_says_so():
    assert VariantFigures(1.0).shortfall is None
    assert VariantFigures(1.0, 0.995, 0.04, 0.0).shortfall is None
    assert "90.0% of the predictions" in VariantFigures(0.9).shortfall
    assert "correlate with 0.980" in VariantFigures(1.0, 0.98, 0.0, 0.0).shortfall
    assert "correlate with true ones by -0.100" in VariantFigures(1.0, 0.999, -0.1, 0.02).shortfall
    assert VariantFigures(1.0, float("nan"), 0.0, 0.0).shortfall is not None


def test_gradients_stay_in_numbers_that_are_fine_enough(sealed_lock):
    suited = {one.name: [name for name in VARIANTS if suits(name, one)] for one in sealed_lock.lock.explainers}
    assert suited == {
        "grad_cam": ["float16", "int8"],
        "gradient": ["float16"],
        "visual_backprop": ["float16", "int8"],
    }


def test_the_layer_that_decides_stays_in_float32(variant):
    graph = onnx.load_from_string(variant[1]).graph
    made = {name: node for node in graph.node for name in node.output}
    if variant[0] == "int8":
        layer = made["logits"]
        assert layer.op_type == "Gemm"
        assert not any(made[name].op_type == "DequantizeLinear" for name in layer.input if name in made)


def test_an_unknown_variant_and_an_unusable_graph_are_refused(graph, images, weights):
    with pytest.raises(UnknownNameError, match="int8"):
        make_variant("int4", graph, images, weights=weights)
    with pytest.raises(ExportError, match="the variant int8 of a graph cannot be made"):
        make_variant("int8", graph, images[:, :2], weights=weights)
