"""The graphs of a bundle in smaller numbers: which are kept, which are not, and why all keys of a lock agree."""

import logging
from dataclasses import replace

import pytest

from keylock.errors import ExportError
from keylock.export import Secrets, compile_explainer
from keylock.pipeline import graphs
from keylock.pipeline.graphs import count_steps, make_graphs

SHAPE, CLASSES = (3, 16, 16), 3


@pytest.fixture(scope="module")
def make(two_factors):
    """Makes the graphs of two explainers of the lock, with variants."""
    chosen = {explainer.name: explainer for explainer in two_factors.lock.explainers}

    def make(*names, compiled, variants=("float16", "int8"), on_step=lambda what: None):
        lock = replace(two_factors.lock, explainers=tuple(chosen[name] for name in names))
        return make_graphs(
            lock,
            two_factors.images[:32].numpy(),
            secrets=Secrets(two_factors.key, lock.adapter, lock.reference),
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


@pytest.fixture
def wrong(two_factors):
    """A graph of the same inputs and outputs with other maps: the adapter on weights that it does not belong to."""
    lock, explainer = two_factors.lock, two_factors.lock.explainers[0]
    shapes = lock.adapter.shapes()
    return compile_explainer(lock.reference, explainer, image_shape=SHAPE, num_classes=CLASSES, adapter_shapes=shapes)


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
    assert len(made.files["graphs/int8/predict.onnx"]) < len(made.files["graphs/predict.onnx"])


def test_the_next_key_of_a_lock_gets_the_same_graphs(make, made, shared):
    assert make("grad_cam", "gradient", compiled=shared).files == made.files


@pytest.mark.parametrize("variants", [(), ("float16", "int8")])
def test_every_step_was_foreseen(make, shared, made, two_factors, variants):
    steps = []
    make("grad_cam", "gradient", compiled=shared, variants=variants, on_step=steps.append)
    chosen = [explainer for explainer in two_factors.lock.explainers if explainer.name in ("grad_cam", "gradient")]
    assert len(steps) == count_steps(replace(two_factors.lock, explainers=tuple(chosen)), variants)
    assert steps[0] == "compile predictions"
    assert steps[-1] == ("float16 of gradient" if variants else "compile gradient to be merged")


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


def test_every_graph_of_a_two_factor_lock_has_a_mergeable_one_in_the_same_numbers(made):
    cam, gradient = made.entries
    for entry, names in ((cam, ["float16", "int8"]), (gradient, ["float16"])):
        assert entry.mergeable == f"graphs/mergeable/{entry.name}.onnx"
        merging = {name: variant.mergeable for name, variant in entry.variants.items()}
        assert merging == {name: f"graphs/{name}/mergeable/{entry.name}.onnx" for name in names}
        for file in (entry.mergeable, *merging.values()):
            assert file in made.files


def test_a_mergeable_graph_of_other_maps_is_left_out_for_every_key(make, made, shared, monkeypatch, caplog):
    compiled = {place: graph for place, graph in shared.items() if "mergeable" not in place}
    other = made.files["graphs/mergeable/gradient.onnx"]
    monkeypatch.setattr(graphs, "compile_mergeable", lambda *_args, **_options: other)
    with caplog.at_level(logging.WARNING):
        (entry,) = make("grad_cam", compiled=compiled, variants=("int8",)).entries
    assert "the mergeable graph of grad_cam is left out: " in caplog.text
    assert entry.mergeable is None
    assert entry.variants["int8"].mergeable is None
    monkeypatch.undo()
    assert make("grad_cam", compiled=compiled, variants=()).entries[0].mergeable is None
