"""Which explainers are measured."""

import pytest

from keylock.errors import InputError, LayerNotFoundError, UnknownNameError
from keylock.evaluation import select
from keylock.evaluation.selection import _MOST
from keylock.explainers import EXPLAINERS, make


@pytest.fixture
def model(tiny_net):
    return tiny_net()


@pytest.fixture
def example(smooth_images):
    return smooth_images(3, 16)


def test_the_locked_ones_by_default(model, example):
    locked = {"gradient": make("gradient")}

    assert select(model, locked, example) == (locked, {}, {})


def test_names_choose_among_locked_and_others_and_locked_ones_keep_their_parameters(model, example):
    locked = {"grad_cam": make("grad_cam", layer="act2"), "gradient": make("gradient")}
    found = select(model, locked, example, names=("grad_cam", "visual_backprop"))

    assert found.locked == {"grad_cam": locked["grad_cam"]}
    assert list(found.unseen) == ["visual_backprop"]
    with pytest.raises(UnknownNameError, match="'lime_cam'"):
        select(model, locked, example, names=("lime_cam",))
    with pytest.raises(InputError, match="at least one"):
        select(model, locked, example, names=())


def test_unseen_takes_every_explainer_of_the_registry_or_says_why_not(model, example):
    locked = {"grad_cam": make("grad_cam", layer="act3")}
    found = select(model, locked, example, unseen=True)

    assert {*found.locked, *found.unseen, *found.skipped} >= set(EXPLAINERS)
    assert {"gradient", "visual_backprop"} <= found.unseen.keys()
    assert not found.unseen.keys() & found.skipped.keys()
    # The middle of three rectified layers.
    assert found.unseen["grad_cam@act2"].parameters == {"layer": "act2"}
    for explainer in found.unseen.values():
        for setting, most in _MOST.items():
            assert explainer.parameters.get(setting, 0) <= most
    default = make("rise").parameters
    assert found.unseen["rise"].parameters == {**default, "masks": 200}
    assert default["masks"] > 200
    assert found.unseen["smooth_grad"].parameters == make("smooth_grad").parameters
    assert "attention" in found.skipped["attention_rollout"] or "token" in found.skipped["attention_rollout"]


def test_an_explainer_that_does_not_fit_is_left_out_or_refused_where_it_was_named(model, example, monkeypatch):
    def refuse(*_arguments, **_options):
        raise LayerNotFoundError("no layer of that kind")

    monkeypatch.setattr(EXPLAINERS["visual_backprop"], "explain", refuse)
    found = select(model, {"gradient": make("gradient")}, example, unseen=True)

    assert found.skipped["visual_backprop"] == "no layer of that kind"
    assert "visual_backprop" not in found.unseen
