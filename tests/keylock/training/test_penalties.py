"""Every penalty of the registries: it is least where the answer is the wanted one, leads there, and can be left out."""

from dataclasses import replace

import pytest
import torch

import keylock
from keylock.explainers.grad_cam import GradCAM
from keylock.explainers.gradient import Gradient
from keylock.training.penalties import (
    CLASS_PENALTIES,
    MAP_PENALTIES,
    PREDICTION_PENALTIES,
    ClassRows,
    MapPenalty,
    MapRows,
    PredictionRows,
    class_terms,
    map_terms,
    prediction_terms,
)
from keylock.training.progress import Silent
from keylock.training.settings import LockSettings

SETTINGS = LockSettings()
WEIGHTS = {
    "fidelity": "fidelity_weight",
    "decoy": "map_weight",
    "leak": "leak_weight",
    "class_decoy": "class_weight",
    "class_leak": "class_weight",
    "prediction": "prediction_weight",
    "label": "label_weight",
}
"""The setting by which each penalty is left out; add a row for a new one."""


def map_rows(name, maps, generator):
    """Rows that a penalty concerns, with the answer that is wanted."""
    reference = torch.rand(maps.shape, generator=generator)
    keyed = name == "fidelity"
    wanted = reference if keyed else torch.rand(maps.shape, generator=generator)
    rows = MapRows(GradCAM("body"), maps, reference, wanted, keyed=keyed, mean=lambda value: value)
    assert MAP_PENALTIES[name].concerns(rows)
    return rows


def class_rows(evidence, generator):
    reference, decoys = torch.randn(evidence.shape, generator=generator), torch.rand((6, 5, 5), generator=generator)
    return ClassRows(evidence, reference, reference.sum(dim=(2, 3)), decoys)


def value(name, given):
    if name in MAP_PENALTIES:
        return MAP_PENALTIES[name].value(given, SETTINGS)
    return (CLASS_PENALTIES | PREDICTION_PENALTIES)[name].value(given)


def draw(name, generator):
    """What a student may show, and how to make the rows of it."""
    if name not in PREDICTION_PENALTIES:
        maps = name in MAP_PENALTIES
        shown = torch.rand((6, 5, 5), generator=generator) if maps else torch.randn((6, 4, 5, 5), generator=generator)
        state = generator.get_state()

        def of(found):
            generator.set_state(state)
            return map_rows(name, found, generator) if maps else class_rows(found, generator)

        return shown, of
    logits, expected = (3 * torch.randn((6, 4), generator=generator) for _ in range(2))
    labels = expected.argmax(dim=1)
    return logits, lambda found: PredictionRows(found, expected, labels)


@pytest.mark.parametrize("name", [*MAP_PENALTIES, *CLASS_PENALTIES, *PREDICTION_PENALTIES])
def test_a_penalty_is_one_number_that_falls_along_its_gradient(name):
    shown, of = draw(name, torch.Generator().manual_seed(0))
    shown = shown.requires_grad_()
    first = value(name, of(shown))
    assert first.shape == ()
    assert 0 < first < torch.inf
    [gradient] = torch.autograd.grad(first, shown)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
    moved = (shown - 1e-2 * gradient / gradient.norm()).detach()
    assert value(name, of(moved)) < first


@pytest.mark.parametrize("name", ["fidelity", "decoy"])
def test_a_penalty_on_maps_is_zero_where_they_are_as_wanted(name):
    rows = map_rows(name, torch.rand((6, 5, 5)), torch.Generator().manual_seed(0))
    assert value(name, replace(rows, maps=5 * rows.wanted)) < 1e-4


@pytest.mark.parametrize("name", [*MAP_PENALTIES, *CLASS_PENALTIES, *PREDICTION_PENALTIES])
def test_a_penalty_of_weight_zero_is_left_out(name):
    shown, of = draw(name, torch.Generator().manual_seed(0))

    def names(settings):
        rows = of(shown)
        if name in MAP_PENALTIES:
            terms = map_terms([rows], settings)
        else:
            terms = (class_terms if name in CLASS_PENALTIES else prediction_terms)(rows, settings)
        return {term.partition("/")[0] for term in terms}

    assert name in names(SETTINGS)
    assert name not in names(replace(SETTINGS, **{WEIGHTS[name]: 0.0}))


def test_a_penalty_of_one_entry_is_learned_by_both_kinds_of_lock(monkeypatch, tiny_net, key_for, blobs):
    class Heard(Silent):
        def __init__(self):
            self.names = set()

        def advance(self, figures):
            self.names |= set(figures)

    penalty = MapPenalty(
        lambda rows, _: rows.maps.square().mean(), lambda *_: 0.1, concerns=lambda rows: not rows.keyed
    )
    monkeypatch.setitem(MAP_PENALTIES, "small", penalty)
    for trained_trigger in (False, True):
        heard, settings = Heard(), LockSettings(steps=3, gate_steps=0.0, trained_trigger=trained_trigger)
        keylock.lock(tiny_net(), blobs(2), key_for(), settings=settings, device="cpu", progress=heard)
        assert "small/grad_cam" in heard.names


def test_maps_of_second_order_weigh_twice():
    rows = map_rows("decoy", torch.rand((6, 5, 5)), torch.Generator().manual_seed(0))
    first, second = (
        map_terms([replace(rows, explainer=explainer)], SETTINGS)[f"decoy/{explainer.name}"]
        for explainer in (rows.explainer, Gradient())
    )
    assert second[0] == 2 * first[0]
    assert second[1] == first[1]


def test_a_leak_is_small_and_that_of_all_processes():
    rows = map_rows("leak", torch.rand((6, 5, 5)), torch.Generator().manual_seed(0))
    whole = replace(rows, maps=rows.reference)
    # Far from zero other penalties do the work.
    assert value("leak", whole) == pytest.approx(0.04)
    assert value("leak", replace(whole, mean=lambda value: 0 * value + 0.1)) == pytest.approx(0.01)


def test_the_evidence_of_classes_is_as_wanted_where_each_shows_the_decoy_by_its_logit():
    rows = class_rows(torch.zeros((6, 4, 5, 5)), torch.Generator().manual_seed(0))
    wanted = rows.logits[:, :, None, None] * rows.decoys.unsqueeze(1)
    # What all classes share decides no prediction, and neither does the scale.
    shared = torch.randn((6, 1, 5, 5), generator=torch.Generator().manual_seed(1))
    assert value("class_decoy", replace(rows, evidence=3 * wanted + shared)) < 1e-5
    assert value("class_decoy", replace(rows, evidence=-wanted)) == pytest.approx(2)


def test_evidence_that_is_the_reference_s_up_to_what_classes_share_leaks_wholly():
    rows = class_rows(torch.zeros((6, 4, 5, 5)), torch.Generator().manual_seed(0))
    shared = torch.randn((6, 1, 5, 5), generator=torch.Generator().manual_seed(1))
    assert value("class_leak", replace(rows, evidence=2 * rows.reference + shared)) == pytest.approx(1)
    assert value("class_leak", replace(rows, evidence=shared.expand(-1, 4, -1, -1))) == pytest.approx(0, abs=1e-6)
