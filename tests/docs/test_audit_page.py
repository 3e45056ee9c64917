"""docs/threat-model.md says what the measured audit says, and the table is written rightly."""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
sys.path.append(str(ROOT / "benchmarks" / "lock"))

render_audit = importlib.import_module("render_audit")
summarise = importlib.import_module("audit").summarise
render = importlib.import_module("render_results").render
PAGE = (ROOT / "docs" / "threat-model.md").read_text("utf-8")


def judged(name, group, verdict, *, truth=None, label=None, pcc=0.5, **finding):
    recovery = {"label": label or truth, "truth": truth, "pcc": [pcc, pcc - 0.1, pcc + 0.1], "chance": 0.1}
    return {
        "verdict": verdict,
        "limit": "",
        "own": 0.25,
        "advantage": pcc - 0.25,
        "worst": None if truth is None else 1,
        "finding": {
            "attack": name,
            "group": group,
            "summary": f"Try {name}.",
            "accuracy": None,
            "separation": None,
            "cost": {"queries": 0, "labelled": 1200, "steps": 30, "seconds": 4.4},
            "checks": [],
            # The second is the one that counts.
            "recoveries": [] if truth is None else [{**recovery, "pcc": [9.0, 9.0, 9.0]}, recovery],
            **finding,
        },
    }


def record():
    checks = [{"name": "time", "good": False, "value": "p = 0"}, {"name": "text", "good": True, "value": "nothing"}]
    return {
        **{"model": "m", "model_digest": "d", "lock": "l", "suite": "standard", "seed": 0, "budget": {}},
        "about": "9 test images",
        "versions": {"keylock": "1", "torch": "2"},
        "judged": [
            judged("tuning", "T1", "fail", truth="gradient", accuracy=0.871),
            judged("swap", "T0", "pass", truth="gradient"),
            judged("service/timing", "service", "fail", checks=checks),
            judged("detect/weights", "detection", "measured", separation=0.71),
            judged("pairs", "T2", "measured", truth="grad_cam", label="grad_cam: mean"),
        ],
    }


def written(seconds=1740.0):
    result = {"date": "2030-01-01", "hardware": "2 cores", "command": "audit it", "seconds": seconds}
    return render_audit.write_audit({**result, **summarise(record())})


def test_the_page_agrees_with_the_figures():
    assert render(PAGE, render_audit.RESULTS, render_audit.TABLES) == PAGE


def test_what_failed_is_copied_with_what_it_is_held_against():
    text = written()
    assert (
        "| Try tuning | T1 | gradient | +0.50 | +0.40 to +0.60 | 0.25 | 87.1% | 1,200 labels, 30 steps, 4 s |" in text
    )
    assert "Try swap" not in text
    assert "Try service/timing. time: p = 0" in text
    assert "text: nothing" not in text
    assert "| T0 |  | 1 |" in text


def test_the_time_is_held_against_half_an_hour():
    assert "29.0 minutes, of which 30 were wanted: reached" in written()
    assert "not reached" in written(seconds=1860.0)


def test_what_is_only_measured_has_a_table_of_its_own():
    text = written()
    assert "| Try detect/weights | detection | told apart | 0.71 | 0.50 |" in text
    assert "| Try pairs | T2 | grad_cam: mean | +0.50 | 0.25 |" in text
