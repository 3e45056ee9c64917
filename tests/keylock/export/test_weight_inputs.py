"""Graphs that take the weights which a lock seals: what is given decides which side answers, and nothing is inside."""

import copy
import functools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from unusual_networks import UNUSUAL

from keylock.errors import ExportError, ModelError
from keylock.explainers import make
from keylock.export import (
    Side,
    compile_explainer,
    compile_gradient_sums,
    compile_prediction,
    explain_graph,
    surest_images,
    verify_gradient_sums,
    verify_graph,
    verify_loop,
    verify_prediction,
)
from keylock.imaging.contrast import same_map
from keylock.models import arrays_of, delta_between
from keylock.models.deltas import add_deltas_, merge_deltas_
from keylock.trigger.delta import Delta

SHAPE = (3, 16, 16)
NAMES = ("grad_cam", "gradient", "visual_backprop")
KINDS = (*NAMES, "prediction", "sums")
TARGETS = np.array([0, 1, 2, -1, 2, 0, 1, -1])


@pytest.fixture(scope="module")
def lock(sealed_lock):
    return sealed_lock.lock


@pytest.fixture(scope="module")
def images(sealed_lock):
    return sealed_lock.images[:8].numpy()


@pytest.fixture(scope="module")
def compiled(lock):
    """A graph by its kind: an explainer's name, `prediction` or `sums`."""

    @functools.cache
    def make_graph(kind: str) -> bytes:
        given = {"image_shape": SHAPE, "num_classes": 3, "weights": lock.delta.names}
        if kind == "prediction":
            return compile_prediction(lock.module, **given)
        if kind == "sums":
            return compile_gradient_sums(lock.module, **given)
        return compile_explainer(lock.module, explainer_of(lock, kind), **given)

    return make_graph


@pytest.fixture(scope="module")
def published(lock):
    return Side(lock.module)


@pytest.fixture(scope="module")
def opened(lock):
    return Side(lock.reference, weights=lock.delta.added_to(arrays_of(lock.module)))


def explainer_of(lock, name):
    return next(one for one in lock.explainers if one.name == name)


def rows_of(kind, images):
    rows = {"image": images, "target": np.where(TARGETS < 0, 0, TARGETS)}
    if kind == "prediction":
        del rows["target"]
    if kind == "sums":
        rows["share"] = np.eye(len(images), dtype=np.float32)
    return rows


def run(graph, rows, weights):
    """Run a graph as it stands in the file, with weights given as inputs like any row."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(None, rows | {name: weights[name] for name in input_names(graph) if name not in rows})


def input_names(graph):
    return [value.name for value in onnx.load_from_string(graph).graph.input]


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_that_are_given_decide_which_side_answers(kind, lock, compiled, images):
    answers = {}
    for side, model in (("published", lock.module), ("opened", lock.reference)):
        weights = arrays_of(lock.module) if side == "published" else lock.delta.added_to(arrays_of(lock.module))
        answers[side] = run(compiled(kind), rows_of(kind, images), weights)
        rows = rows_of(kind, images)
        if kind == "sums":
            inputs = torch.from_numpy(images).requires_grad_()
            model(inputs)[torch.arange(8), torch.from_numpy(rows["target"])].sum().backward()
            expected = [inputs.grad.numpy()]
        elif kind == "prediction":
            expected = [model(torch.from_numpy(images)).numpy()]
        else:
            explained = explainer_of(lock, kind).explain(
                model, torch.from_numpy(images), torch.from_numpy(rows["target"])
            )
            expected = [explained.logits.numpy(), explained.maps.numpy()]
        for found, wanted in zip(answers[side], expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-4 * np.abs(wanted).max())
    # The two sides are not alike, so the comparison says something.
    decoys, true = answers["published"][-1], answers["opened"][-1]
    assert np.abs(true - decoys).max() > 0.05 * np.abs(true).max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_takes_exactly_what_is_sealed_in_the_shapes_of_the_network(kind, lock, compiled):
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in onnx.load_from_string(compiled(kind)).graph.input
    }
    rows = {name: shapes.pop(name) for name in ("image", "target", "share") if name in shapes}
    # Sizes that are left open are text, by whatever name.
    fixed = {name: [size for size in shape if not isinstance(size, str)] for name, shape in rows.items()}
    expected = {"image": [3, 16, 16], "target": [], "share": []}
    wanted = {"prediction": ("image",), "sums": ("image", "target", "share")}.get(kind, ("image", "target"))
    assert fixed == {name: expected[name] for name in wanted}
    arrays = lock.delta.reveal()
    assert {name: tuple(shape) for name, shape in shapes.items()} == {n: array.shape for n, array in arrays.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_of_either_side_stands_in_the_graph(kind, lock, sealed_lock, compiled):
    graph = compiled(kind)
    secrets = {"key": sealed_lock.key.reveal(), **lock.delta.reveal()}
    sides = [secrets, *({name: arrays_of(m)[name] for name in lock.delta.names} for m in (lock.module, lock.reference))]
    looked_at = 0
    for arrays in sides:
        for array in arrays.values():
            # As it lies in memory, and turned as a layer of a gradient may hold it.
            for values in (array.ravel(), np.moveaxis(array, 0, -1).ravel()):
                for start in range(0, values.size - 3, 4):
                    assert values[start : start + 4].tobytes() not in graph
                    looked_at += 1
    assert looked_at > 1000
    initial = [tensor for tensor in onnx.load_from_string(graph).graph.initializer if np.prod(tensor.dims) > 100]
    assert [tensor.name for tensor in initial] == []


def test_weights_that_are_not_named_are_constants(lock, compiled, images):
    some = lock.delta.names[:3]
    graph = compile_prediction(lock.module, image_shape=SHAPE, num_classes=3, weights=some)
    assert input_names(graph) == ["image", *some]
    found = run(graph, {"image": images}, arrays_of(lock.module))
    np.testing.assert_allclose(found[0], lock.module(torch.from_numpy(images)).numpy(), rtol=1e-3, atol=1e-5)
    with pytest.raises(KeyError, match="nowhere"):
        compile_prediction(lock.module, image_shape=SHAPE, num_classes=3, weights=["nowhere.weight"])


def test_compiling_leaves_the_network_as_it_was(lock):
    module = copy.deepcopy(lock.module)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    kinds = {name: type(parameter) for name, parameter in module.named_parameters()}
    compile_explainer(
        module, explainer_of(lock, "gradient"), image_shape=SHAPE, num_classes=3, weights=lock.delta.names
    )
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())
    assert {name: type(parameter) for name, parameter in module.named_parameters()} == kinds
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_compiling_twice_gives_the_same_bytes(lock, compiled):
    given = {"image_shape": SHAPE, "num_classes": 3, "weights": lock.delta.names}
    assert compile_explainer(lock.module, explainer_of(lock, "grad_cam"), **given) == compiled("grad_cam")


def test_the_graph_of_either_set_of_weights_is_the_same_graph(lock, compiled):
    """Nothing of the network it was made from is in it where all that differs is an input."""
    given = {"image_shape": SHAPE, "num_classes": 3, "weights": lock.delta.names}
    assert compile_prediction(lock.reference, **given) == compiled("prediction")


def test_the_number_of_classes_is_checked(lock):
    with pytest.raises(ModelError, match="4 classes"):
        compile_prediction(lock.module, image_shape=SHAPE, num_classes=4, weights=lock.delta.names)


# The proof


@pytest.mark.parametrize("name", NAMES)
def test_the_proof_covers_both_sides(name, lock, compiled, images, published, opened):
    explainer = explainer_of(lock, name)
    for side in (published, opened):
        found = verify_graph(compiled(name), side, explainer, images, TARGETS)
        assert found.pcc_minimum > 0.999
        assert found.max_logits_difference < 1e-4
        assert verify_prediction(compiled("prediction"), side, images) < 1e-4
        assert verify_gradient_sums(compiled("sums"), side, images, TARGETS).pcc_minimum > 0.999


def wrong_sides(lock):
    """Sides that do not hold: one side's weights with the other's module, and a delta that lacks an entry."""
    arrays = lock.delta.reveal()
    part = Delta({name: array for name, array in arrays.items() if name != "last.weight"})
    weights = arrays_of(lock.module)
    return {
        "published weights for the reference": Side(lock.reference, weights=weights),
        "opened weights for the published": Side(lock.module, weights=lock.delta.added_to(weights)),
        "half opened": Side(lock.reference, weights=part.added_to(weights)),
        "added twice": Side(lock.reference, weights=lock.delta.added_to(lock.delta.added_to(weights))),
    }


WRONG = ("published weights for the reference", "opened weights for the published", "half opened", "added twice")


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_side_is_refused_by_every_proof(wrong, lock, compiled, images):
    side = wrong_sides(lock)[wrong]
    with pytest.raises(ExportError, match="does not compute what it computes in torch"):
        verify_graph(compiled("grad_cam"), side, explainer_of(lock, "grad_cam"), images, TARGETS)
    with pytest.raises(ExportError, match="logits differ"):
        verify_prediction(compiled("prediction"), side, images)
    with pytest.raises(ExportError, match="sum of input gradients"):
        verify_gradient_sums(compiled("sums"), side, images, TARGETS)
    with pytest.raises(ExportError, match="occlusion"):
        verify_loop(compiled("prediction"), side, make("occlusion", patch=8), images[:1], TARGETS[:1])


def test_a_side_gives_a_graph_the_weights_of_its_module_unless_told_otherwise(lock, compiled, images):
    plain, given = Side(lock.reference), Side(lock.reference, weights=arrays_of(lock.reference))
    for found in (explain_graph(compiled("gradient"), side, images) for side in (plain, given)):
        expected = explainer_of(lock, "gradient").explain(
            lock.reference, torch.from_numpy(images), torch.full((8,), -1)
        )
        np.testing.assert_allclose(found, expected.maps.numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("grad_cam", None), ("gradient", None), ("rise", {"masks": 8, "cells": 3}), ("smooth_grad", {"samples": 2})],
)
def test_where_the_network_tells_the_trigger_it_is_added_to_all_that_is_run(
    name, parameters, lock, sealed_lock, compiled, images
):
    offset = 4 * sealed_lock.key.reveal()
    side, without = Side(lock.module, offset=offset), Side(lock.module)
    few, targets = images[:2], TARGETS[:2]
    if parameters is None:
        explainer = explainer_of(lock, name)
        assert verify_graph(compiled(name), side, explainer, few, targets).pcc_minimum > 0.999
        found = explain_graph(compiled(name), side, few)
        assert len(found) == len(few)
        expected = explainer.explain(lock.module, torch.from_numpy(few + offset), torch.full((2,), -1)).maps.numpy()
        assert min(same_map(one, other) for one, other in zip(found, expected, strict=True)) > 0.999
        assert not np.allclose(found, explain_graph(compiled(name), without, few), rtol=1e-2)
        return
    explainer = make(name, **parameters)
    graph, predictions = (
        (compiled("sums"), compiled("prediction")) if explainer.reads == "gradient" else (compiled("prediction"), None)
    )
    assert verify_loop(graph, side, explainer, few, targets, predictions=predictions).pcc_minimum > 0.999


def test_the_surest_images_keep_their_classes_longest(sealed_lock, published, opened):
    lock, images = sealed_lock.lock, sealed_lock.images[:30]
    found = surest_images((opened, published), images.numpy(), count=4)

    margins = [model(images).topk(2).values.diff().neg()[:, 0] for model in (lock.reference, lock.module)]
    least = torch.minimum(*margins)
    expected = least.argsort(descending=True)[:4].sort().values
    np.testing.assert_array_equal(found, images[expected].numpy())
    assert least[expected].min() > least.median()


# Networks whose layers are read by functions, share weights, or see other rows than images


@pytest.mark.parametrize("name", list(UNUSUAL))
def test_every_network_exports_with_its_weights_as_inputs_and_agrees_on_both_sides(name, smooth_images):
    reference, images = UNUSUAL[name]().requires_grad_(requires_grad=False), smooth_images(3, 16)
    student = add_deltas_(copy.deepcopy(reference), rank=2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter_name, parameter in student.named_parameters():
            if parameter.requires_grad and not parameter_name.endswith("down"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    published = merge_deltas_(student).eval().requires_grad_(requires_grad=False)
    delta, gradient = delta_between(published, reference), make("gradient")
    graph = compile_explainer(published, gradient, image_shape=SHAPE, num_classes=3, weights=delta.names)
    assert set(input_names(graph)) == {"image", "target", *delta.names}
    targets = np.array([0, -1, 2])
    opened = Side(reference, weights=delta.added_to(arrays_of(published)))
    for side in (Side(published), opened):
        assert verify_graph(graph, side, gradient, images.numpy(), targets).pcc_minimum > 0.999
    with pytest.raises(ExportError):
        verify_graph(graph, Side(published, weights=opened.weights), gradient, images.numpy(), targets)
