"""Pictures of an evaluation: they are written, they show what they are given, and they are the same every time."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib")

from keylock.evaluation.drawing import draw_gate, draw_maps
from keylock.evaluation.gate import GateCurve, GatePoint

POINTS = [
    GatePoint(name, sweep, at, mean, mean - 0.1, mean + 0.1, mean + 0.2, 3)
    for name, base in (("grad_cam", 0.1), ("gradient", 0.3))
    for sweep, at, mean in (("correlation", 0.5, base), ("correlation", 1.0, 0.9), ("strength", 1.0, 0.9))
]
CURVE = GateCurve(tuple(POINTS), {"grad_cam": 0.5, "gradient": 0.2}, 40)


def text_of(svg):
    """The words of an SVG whose letters are outlines: matplotlib leaves each in a comment."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text("utf-8"))


def test_a_gate_curve_is_drawn_with_both_sweeps_and_every_explainer(tmp_path):
    png, svg = draw_gate(CURVE, tmp_path / "gate")

    assert (png.name, svg.name) == ("gate.png", "gate.svg")
    with Image.open(png) as picture:
        assert picture.size[0] > picture.size[1] > 300
    words = text_of(svg)
    assert {"grad_cam", "gradient", "correlation with the key", "PCC to the reference map"} <= set(words)
    # The legend names what is drawn, once, and every explainer.
    assert [words.count(entry) for entry in ("mean", "95 % interval", "largest draw", "chance")] == [1, 1, 1, 1]
    assert words.count("grad_cam") == 1


def test_a_grid_of_maps_shows_every_kind_with_its_correlation(tmp_path):
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    truth = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    samples = {"reference": truth, "keyed": 2 * truth, "keyless": 1 - truth, "wrong_key": torch.zeros(2, 4, 4)}
    png, svg = draw_maps("grad_cam@layer2.1", pixels, samples, tmp_path / "maps-grad_cam@layer2.1")

    assert (png.name, svg.name) == ("maps-grad_cam@layer2.1.png", "maps-grad_cam@layer2.1.svg")
    words = text_of(svg)
    assert {"reference", "keyed", "keyless", "wrong key"} <= set(words)
    assert words.count("+1.00") == 2
    assert words.count("-1.00") == 2
    with Image.open(png) as picture:
        colours = np.asarray(picture.convert("RGB"))
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 20


def test_images_that_a_slow_explainer_was_not_asked_about_are_left_out(tmp_path):
    pixels = np.zeros((6, 8, 8, 3), np.uint8)
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    samples = dict.fromkeys(("reference", "keyed", "keyless", "wrong_key"), maps)
    _, svg = draw_maps("lime", pixels, samples, tmp_path / "maps-lime")

    assert text_of(svg).count("+1.00") == 6


def test_the_same_curve_gives_the_same_file(tmp_path):
    first, second = (draw_gate(CURVE, tmp_path / name)[1].read_bytes() for name in ("one", "two"))

    assert first == second
