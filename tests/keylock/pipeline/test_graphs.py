"""The graphs of a bundle in reduced precision: which are kept, which are not, and why all keys of a lock agree."""

import logging
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from keylock.errors import ExportError
from keylock.export import compile_explainer
from keylock.models import arrays_of
from keylock.pipeline import graphs
from keylock.pipeline.graphs import count_steps, make_graphs, sides_of
from keylock.trigger.delta import Delta

SHAPE, CLASSES = (3, 16, 16), 3


@pytest.fixture(scope="module")
def make(sealed_lock):
    """Makes the graphs of two explainers of the lock, with variants."""
    chosen = {explainer.name: explainer for explainer in sealed_lock.lock.explainers}

    def make(*names, compiled, variants=("float16", "int8"), on_step=lambda what: None, **changes):
        lock = replace(sealed_lock.lock, explainers=tuple(chosen[name] for name in names), **changes)
        return make_graphs(
            lock,
            sealed_lock.images[:32].numpy(),
            key=sealed_lock.key,
            image_shape=SHAPE,
            num_classes=CLASSES,
            variants=variants,
            on_step=on_step,
            compiled=compiled,
        )

    return make


@pytest.fixture(scope="module")
def shared():
    return {}


@pytest.fixture(scope="module")
def made(make, shared):
    return make("grad_cam", "gradient", compiled=shared)


@pytest.fixture(scope="module")
def wrong(sealed_lock):
    """A graph of the same inputs and outputs with other maps: those of an earlier layer."""
    lock, explainer = sealed_lock.lock, sealed_lock.lock.explainers[0]
    other = replace(explainer, layer="act3")
    return compile_explainer(lock.module, other, image_shape=SHAPE, num_classes=CLASSES, weights=lock.delta.names)


def test_variants_that_hold_are_kept_with_what_was_measured(made):
    cam, gradient = made.entries
    assert list(made.variants) == list(cam.variants) == ["float16", "int8"]
    # Eight bits are too few for a gradient, so none was tried.
    assert list(gradient.variants) == ["float16"]
    for entry in (cam, gradient):
        for name, variant in entry.variants.items():
            assert variant.graph == f"graphs/{name}/{entry.name}.onnx"
            assert variant.graph in made.files
            assert 0.99 <= variant.keyed_pcc <= 1
            assert abs(variant.leakage) <= abs(variant.leakage_float32) + 0.05
            assert variant.agreement >= 0.98
    assert made.variants["int8"].keyed_pcc is None


def test_the_next_key_of_a_lock_gets_the_same_graphs(make, made, shared):
    assert make("grad_cam", "gradient", compiled=shared).files == made.files


@pytest.mark.parametrize("variants", [(), ("float16", "int8")])
def test_every_step_was_foreseen(make, shared, made, sealed_lock, variants):
    steps = []
    make("grad_cam", "gradient", compiled=shared, variants=variants, on_step=steps.append)
    chosen = [explainer for explainer in sealed_lock.lock.explainers if explainer.name in ("grad_cam", "gradient")]
    assert len(steps) == count_steps(replace(sealed_lock.lock, explainers=tuple(chosen)), variants)
    assert steps[0] == "compile every graph"
    assert steps[-1] == ("float16 of gradient" if variants else "prove gradient")


def test_a_variant_that_falls_short_is_left_out_for_every_key(make, made, shared, wrong, monkeypatch, caplog):
    compiled = {place: graph for place, graph in shared.items() if "int8" not in place}
    whole = made.files["graphs/predict.onnx"]
    monkeypatch.setattr(graphs, "make_variant", lambda name, graph, images, **_: graph if graph == whole else wrong)
    with caplog.at_level(logging.WARNING):
        found = make("grad_cam", compiled=compiled, variants=("int8",))
    assert found.entries[0].variants == {}
    assert "int8 of grad_cam is left out: " in caplog.text
    assert "graphs/int8/grad_cam.onnx" not in found.files
    monkeypatch.undo()
    assert make("grad_cam", compiled=compiled, variants=("int8",)).entries[0].variants == {}


def test_a_variant_that_holds_for_one_key_alone_ends_the_run(make, made, shared, wrong):
    compiled = {**shared, "graphs/int8/grad_cam.onnx": wrong}
    with pytest.raises(ExportError, match="holds for one key of the lock and not for another"):
        make("grad_cam", compiled=compiled, variants=("int8",))


def test_a_variant_that_fails_at_the_canary_is_left_out(make, shared, monkeypatch, caplog):
    """A server would not call itself well with it."""
    compiled = {place: graph for place, graph in shared.items() if "float16" not in place}
    monkeypatch.setattr(graphs.Canary, "difference", lambda *_args, **_maps: "keyed maps differ")
    with caplog.at_level(logging.WARNING):
        assert make("grad_cam", compiled=compiled, variants=("float16",)).entries[0].variants == {}
    assert "float16 of grad_cam is left out: keyed maps differ" in caplog.text


def test_every_graph_takes_what_is_sealed_and_nothing_of_either_side_stands_in_it(made, sealed_lock):
    lock = sealed_lock.lock
    sides = [lock.delta.reveal(), arrays_of(lock.module), arrays_of(lock.reference)]
    assert set(made.files) >= {"graphs/predict.onnx", "graphs/grad_cam.onnx", "graphs/gradient.onnx"}
    for place, graph in made.files.items():
        inputs = {value.name for value in onnx.load_from_string(graph).graph.input}
        assert inputs - {"image", "target"} == set(lock.delta.names), place
        for arrays in sides:
            for name in lock.delta.names:
                array = arrays[name].ravel()
                for kind in (np.float32, np.float16):
                    assert array.size < 8 or array[:8].astype(kind).tobytes() not in graph, (place, name)


def test_the_canary_holds_the_maps_of_both_sides(made, sealed_lock):
    lock, images = sealed_lock.lock, torch.from_numpy(made.canary.images)
    assert set(made.canary.keyed) == set(made.canary.keyless) == {"grad_cam", "gradient"}
    for explainer in lock.explainers[:2]:
        for model, kept in ((lock.reference, made.canary.keyed), (lock.module, made.canary.keyless)):
            expected = explainer.explain(model, images, torch.full((len(images),), -1)).maps.numpy()
            found = kept[explainer.name]
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_the_opened_side_is_proved_against_the_reference_with_what_a_server_makes_of_the_delta(sealed_lock):
    lock = sealed_lock.lock
    opened, published = sides_of(lock, sealed_lock.key)
    assert (opened.module, published.module) == (lock.reference, lock.module)
    assert (opened.offset, published.offset, published.weights) == (None, None, None)
    for name, array in arrays_of(lock.reference).items():
        np.testing.assert_allclose(opened.weights[name], array, rtol=0, atol=1e-6)


def test_where_the_network_tells_the_trigger_one_side_has_it_on_all_that_is_run(sealed_lock):
    lock = replace(sealed_lock.lock, delta=None, statistics=None)
    keyed, keyless = sides_of(lock, sealed_lock.key)
    assert keyed.module is keyless.module is lock.module
    np.testing.assert_array_equal(keyed.offset, sealed_lock.key.reveal())
    assert (keyed.weights, keyless.offset) == (None, None)


def test_a_lock_whose_delta_is_not_its_own_is_not_published(make, sealed_lock):
    arrays = sealed_lock.lock.delta.reveal()
    other = Delta(arrays | {"last.weight": 2 * arrays["last.weight"]})
    with pytest.raises(ExportError, match="does not compute what it computes in torch"):
        make("grad_cam", compiled={}, variants=(), delta=other)
