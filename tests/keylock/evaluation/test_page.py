"""The page of an evaluation: what it says in words is what the figures say; anything may be missing, or be many."""

import pytest
import torch
from html_page import Page

pytest.importorskip("jinja2")

import numpy as np

from keylock.bundle.manifest import Figure
from keylock.evaluation import EvaluatedExplainer, Evaluation, GateCurve
from keylock.evaluation.gate import GatePoint
from keylock.evaluation.page import render_evaluation

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
MAPS = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(0))
SAMPLES = {"reference": MAPS, "keyed": MAPS, "keyless": 1 - MAPS, "wrong_key": torch.zeros(6, 4, 4)}


def figures_of(label, *, keyed=1.0, keyless=0.02, wrong_key=-0.3, chance=0.1):
    values = {"keyed": keyed, "keyless": keyless, "wrong_key": wrong_key, "chance": chance}
    return [
        Figure(name=f"pcc/{kind}/{label}", value=value, low=value - 0.01, high=value + 0.01, unit="", about="")
        for kind, value in values.items()
    ]


def evaluation_of(locked=("grad_cam",), unseen=(), figures=(), **changes):
    accuracy = [
        Figure(name=f"accuracy/{kind}", value=value, unit="fraction", about="")
        for kind, value in (("reference", 0.9), ("keyless", 0.85))
    ]
    return Evaluation(
        **{
            "model": "toy",
            "model_digest": "sha256:0",
            "about": "6 test images of toys",
            "explainers": tuple(
                EvaluatedExplainer(label, label.partition("@")[0], {"steps": 3}, locked=label in locked)
                for label in (*locked, *unseen)
            ),
            "figures": (*accuracy, *figures),
            **changes,
        }
    )


def read(evaluation, samples=None, pixels=PIXELS):
    page = Page(render_evaluation(evaluation, pixels, samples or {}))
    page.check()
    assert "nan" not in page.shown
    return page


def test_what_it_says_in_words_is_what_the_figures_say():
    figures = figures_of("grad_cam", keyed=0.97) + figures_of("lime", wrong_key=0.05)
    shown = read(evaluation_of(unseen=("lime",), figures=figures)).shown
    assert "maps of what was locked correlate with the true ones by 0.970 at least." in shown
    # A map turned upside down tells as much.
    assert "by 0.300 at most (grad_cam). By more than the true map of another image does: grad_cam." in shown
    assert "not locked correlate with the true ones by 0.050 at most (lime), and none by more" in shown
    assert "85.0% are right; before locking it was 90.0%" in shown
    assert "grad_cam wrong key -0.300" in shown
    assert "lime (unseen) keyless +0.020" in shown


def test_what_was_not_measured_is_not_spoken_of():
    shown = read(evaluation_of(locked=(), skipped={"attention_rollout": "there are no <tokens>"})).shown
    assert "correlate" not in shown
    assert "attention_rollout there are no <tokens>" in shown
    for title in ("The gate", "Maps", "share of the area"):
        assert title not in shown


def test_the_gate_is_drawn_with_bands_draws_and_chance():
    points = [
        GatePoint(name, sweep, at, mean, mean - 0.1, mean + 0.1, mean + 0.2, draws)
        for name, base in (("grad_cam", 0.1), ("gradient", 0.3))
        for sweep, at, mean, draws in (
            ("correlation", 0.5, base, 4),
            ("correlation", 1.0, 0.9, 1),
            ("strength", 0.5, base, 1),
            ("strength", 1.0, 0.9, 1),
            ("shift", (0, 1), 0.0, 1),
        )
    ]
    gate = GateCurve(tuple(points), {"grad_cam": 0.5, "gradient": 0.2}, 40)
    page = read(evaluation_of(gate=gate))
    kinds = [line["class"] for line in page.all("polyline")]
    assert kinds == ["c0", "c0 baseline", "c1", "c1 baseline"] * 2
    assert len(page.all("polygon")) == 4
    # One draw is no spread: a ring for each explainer, at the one place where there were four.
    assert sum("hollow" in spot["class"] for spot in page.all("circle")) == 2
    assert "On 40 images." in page.shown


def test_maps_stand_beside_their_images_and_a_constant_one_has_no_correlation():
    page = read(evaluation_of(figures=figures_of("grad_cam")), {"grad_cam": SAMPLES})
    assert [image["alt"] for image in page.all("img")[:5]] == [
        "image 1",
        *(f"{kind} map of image 1 by grad_cam" for kind in ("reference", "keyed", "keyless", "wrong key")),
    ]
    assert len(page.all("img")) == 30
    assert page.shown.count("r = +1.00") == page.shown.count("r = -1.00") == 6


def test_many_explainers_show_fewer_images_each():
    labels = tuple(f"grad_cam@layer{number}" for number in range(30))
    figures = [figure for label in labels for figure in figures_of(label)]
    page = read(evaluation_of(locked=labels, figures=figures), dict.fromkeys(labels, SAMPLES))
    assert len(page.all("img")) == 30 * 2 * 5
    assert len(page.all("tr")) == 1 + 2 + 1 + 30 * 4


def test_grey_images_are_shown():
    read(evaluation_of(), {"grad_cam": SAMPLES}, PIXELS[..., :1])


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "نموذج", "z" * 300, "a & 'b' \"c\""])
def test_names_are_text(name):
    page = read(evaluation_of(locked=(name,), figures=figures_of(name), model=name), {name: SAMPLES})
    assert name in page.words
    assert page.all("img")[1]["alt"] == f"reference map of image 1 by {name}"
