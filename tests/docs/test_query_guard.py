"""docs/query-guard.md says what the measured files say, and the tables are written rightly."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

render_guard = importlib.import_module("render_guard")
render = importlib.import_module("render_results").render


def figures(excess, copies=49):
    return {
        "scores": 4.25,
        "labels": 12.0,
        "copies": copies,
        "pcc": excess + 0.1,
        "chance": 0.1,
        "excess": [excess, excess - 0.05, excess + 0.05],
        "null": [-0.02, 0.03],
        "truth": "kernel_shap",
        "map": "fitted",
    }


def result(**changes):
    return {
        "date": "2030-01-01",
        "hardware": "2 cores",
        "about": "9 test images",
        "command": "recover it",
        "limits": {"scores": 4, "labels": 12},
        "cpu_minutes": 3.4,
        "plain": {"occlusion_labels": {"49": figures(0.2), "100": figures(0.3, 100)}},
        "adaptive": {},
        "unguarded": {"rise": figures(0.5)},
        "curve": {"scores": {"kernel_shap": {"0": figures(0.0), "no guard": figures(0.4)}}, "labels": {}},
        **changes,
    }


def test_the_page_agrees_with_the_figures():
    text = render_guard.PAGE.read_text("utf-8")
    assert render(text, render_guard.RESULTS, render_guard.TABLES) == text


def test_an_attacker_is_shown_with_chance_and_with_what_shuffled_answers_make():
    text = render_guard.write_recovered(result())
    head = "| attacker | copies | scores | labels | above chance, 49 copies | above chance, 100 copies | answers"
    assert head in text
    assert (
        "| occlusion labels | 100 | 4.2 | 12.0 | +0.20 (+0.15 to +0.25) | +0.30 (+0.25 to +0.35) "
        "| -0.02, at most +0.03 | kernel shap (0.10) |"
    ) in text
    assert "4 for scores, 12 for labels" in text
    assert "| rise | 49 | 4.2 | 12.0 | +0.50 (+0.45 to +0.55) |" in text


def test_a_curve_has_a_column_for_each_budget():
    text = render_guard.write_recovered(result())
    assert "| method | 0 | no guard |" in text
    assert "| kernel shap | +0.00 | +0.40 |" in text


@pytest.mark.parametrize("kind", ["plain", "adaptive", "unguarded"])
def test_what_was_not_measured_has_no_table(kind):
    title = {"plain": "Plain:", "adaptive": "Adaptive:", "unguarded": "Without a guard:"}[kind]
    assert title not in render_guard.write_recovered(result(**{kind: {}}))
