"""delta.py: what takes published weights to those of the reference, and to nothing else."""

import copy
import pickle

import numpy as np
import pytest

from keylock.errors import InputError
from keylock.trigger.delta import Delta


def weights(seed=0, **changes):
    random = np.random.default_rng(seed)
    shapes = {"body.weight": (4, 3, 2, 2), "body.bias": (4,), "head.weight": (2, 4), "scale": ()}
    return {name: np.asarray(random.normal(size=shape), np.float32) for name, shape in shapes.items()} | changes


@pytest.fixture
def published():
    return weights()


@pytest.fixture
def reference(published):
    other = weights(1)
    return published | {name: other[name] for name in ("head.weight", "body.bias")}


def test_the_published_weights_with_the_delta_are_the_references(published, reference):
    found = Delta.between(published, reference).added_to(published)
    assert list(found) == list(published)
    for name, array in reference.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6)
        assert (found[name].dtype, found[name].shape) == (np.float32, array.shape)


def test_only_entries_that_differ_are_in_it_in_the_order_of_their_names(published, reference):
    delta = Delta.between(published, reference)
    assert delta.names == ("body.bias", "head.weight")
    assert tuple(delta.reveal()) == delta.names
    found = delta.added_to(published)
    for name in ("body.weight", "scale"):
        assert found[name] is published[name]


def test_adding_leaves_the_published_weights_as_they_are(published, reference):
    before = {name: array.copy() for name, array in published.items()}
    Delta.between(published, reference).added_to(published)
    for name, array in before.items():
        np.testing.assert_array_equal(published[name], array)


def test_one_number_keeps_its_shape(published):
    found = Delta.between(published, published | {"scale": np.float32(3) * np.ones((), np.float32)})
    assert found.reveal()["scale"].shape == ()
    assert found.added_to(published)["scale"] == pytest.approx(3, rel=1e-6)


def test_arrays_in_another_memory_order_are_the_same_numbers(published):
    turned = np.asfortranarray(weights(2)["body.weight"])
    delta = Delta.between(published, published | {"body.weight": turned})
    assert delta.reveal()["body.weight"].flags.c_contiguous
    np.testing.assert_allclose(delta.added_to(published)["body.weight"], turned, rtol=0, atol=1e-6)


def test_weights_that_do_not_differ_hide_nothing_and_are_refused(published):
    with pytest.raises(InputError, match="nothing to seal"):
        Delta.between(published, {name: array.copy() for name, array in published.items()})


@pytest.mark.parametrize(
    "change",
    [
        {"more": np.ones(2, np.float32)},
        {"head.weight": np.ones((2, 5), np.float32)},
        {"head.weight": np.ones((1, 4), np.float32)},
    ],
    ids=["another entry", "another shape", "a shape that could be broadcast"],
)
def test_weights_of_two_models_have_no_delta(change, published):
    with pytest.raises(InputError, match="two models"):
        Delta.between(published, published | change)
    with pytest.raises(InputError, match="two models"):
        Delta.between(published | change, published)


@pytest.mark.parametrize("shape", [(2, 5), (1, 4), (4,)])
def test_it_is_not_added_to_weights_of_another_model(shape, published, reference):
    delta = Delta.between(published, reference)
    with pytest.raises(InputError, match="two models"):
        delta.added_to(published | {"head.weight": np.ones(shape, np.float32)})
    without = {name: array for name, array in published.items() if name != "body.bias"}
    with pytest.raises(InputError, match="two models"):
        delta.added_to(without)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"a": np.ones(2)},
        {"a": np.ones(2, np.int64)},
        {"a": np.ones(2, np.float32), "b": np.array([1, np.nan], np.float32)},
        {"a": np.array([np.inf], np.float32)},
    ],
    ids=["none", "float64", "int64", "NaN", "infinite"],
)
def test_what_is_no_delta_is_refused(arrays):
    with pytest.raises(InputError, match="this is not a delta"):
        Delta(arrays)


def test_weights_that_lie_too_far_apart_are_refused(published):
    far = np.float32(3e38) * np.ones(4, np.float32)
    with np.errstate(over="ignore"), pytest.raises(InputError, match="this is not a delta"):
        Delta.between(published | {"body.bias": -far}, published | {"body.bias": far})


def test_it_is_opaque(published, reference):
    delta = Delta.between(published, reference)
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="secret"):
            copied(delta)
    assert repr(delta) == "Delta(2 entries)"
    assert not hasattr(delta, "__dict__")


def test_what_is_revealed_can_be_taken_out_without_changing_the_delta(published, reference):
    delta = Delta.between(published, reference)
    delta.reveal().clear()
    assert len(delta.reveal()) == 2
