"""docs/results.md says what the measured files say, and the tables are written rightly."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load():
    spec = importlib.util.spec_from_file_location("render_results", ROOT / "benchmarks" / "render_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


render_results = load()
PAGE = (ROOT / "docs" / "results.md").read_text("utf-8")


def figure(name, value, low=None, high=None):
    return {"name": name, "value": value, "low": low, "high": high, "unit": "fraction", "about": "9 test images"}


def quickstart():
    figures = [figure(f"accuracy/{kind}", 0.9) for kind in ("reference", "keyed", "keyless", "wrong_key")]
    figures += [
        figure("fidelity/gradient", 0.96123, 0.95, 0.97),
        figure("leakage/keyless/gradient", -0.06, -0.07, -0.05),
        figure("leakage/wrong_key/gradient", 0.1),
        figure("chance/gradient", 0.3),
        figure("energy/reference/gradient", 0.6),
        figure("energy/keyed/gradient", 0.53),
        figure("energy/keyless/gradient", 0.28),
        figure("energy/wrong_key/gradient", 0.3),
        figure("object_area", 0.2),
        figure("served/gradient", 0.99991),
    ]
    chapters = [{"title": "Draw a data set", "text": "", "seconds": 1.25}]
    return {"seconds": 100.0, "figures": figures, "chapters": chapters, "versions": {"python": "3.11.0"}}


def cifar10():
    figures = {
        figure_["name"]: figure_
        for figure_ in (
            figure("accuracy/reference", 0.93),
            figure("accuracy/keyed", 0.925, 0.91, 0.94),
            figure("accuracy/keyless", 0.91),
            figure("fidelity/grad_cam", 0.94),
            figure("leakage/keyless/grad_cam", 0.02),
            figure("leakage/wrong_key/grad_cam", -0.05),
            figure("chance/grad_cam", 0.5),
        )
    }
    return {
        "date": "2030-01-01",
        "hardware": "x86_64, 2 cores, 2 threads",
        "torch": "2.0",
        "command": "python benchmarks/lock/cifar10.py",
        "seconds": 600.0,
        "cpu_seconds": 1200.0,
        "figures": figures,
        "keyless_pcc_under": {"batch statistics": {"value": 0.2, "low": 0.1, "high": 0.3}},
    }


def evaluation():
    """Of one locked explainer and one other; the locked one leaks with the flipped key."""
    figures = [figure("accuracy/reference", 0.93), figure("accuracy/keyed", 0.93), figure("accuracy/keyless", 0.92)]
    figures += [figure("agreement/keyed", 0.99), figure("agreement/keyless", 0.97)]
    values = {"keyed": 0.98, "keyless": 0.02, "wrong_key": 0.01, "flipped_key": -0.08, "chance": 0.5}
    for label, factor in (("grad_cam", 1.0), ("rise", 0.5)):
        for name in ("pcc", "ssim", "spearman", "top_overlap"):
            figures += [figure(f"{name}/{kind}/{label}", factor * value, -1, 1) for kind, value in values.items()]
    return {
        "date": "2030-01-01",
        "hardware": "x86_64",
        "torch": "2.0",
        "command": "keylock evaluate cifar10.klb --data cifar10",
        "about": "200 test images of cifar10",
        "explainers": [{"label": "grad_cam", "locked": True}, {"label": "rise", "locked": False}],
        "skipped": {"attention_rollout": "the model has no tokens"},
        "figures": figures,
        "gate": {
            "points": [
                {"sweep": sweep, "at": at, "mean": mean, "low": 0.0, "high": 0.2, "largest": 0.3}
                for sweep, at, mean in (("correlation", 0.5, 0.04), ("correlation", 0.875, 0.3), ("strength", 0.5, 0.9))
            ]
        },
    }


def cost():
    figures = {
        name: {"ratio": ratio, "ms_per_image": 2 * ratio}
        for name, ratio in (("plain fine-tuning", 1.0), ("two factors: grad_cam", 1.5), ("key alone: grad_cam", 3.6))
    }
    figures["key alone: grad_cam, gradient"] = {"ratio": 9.0, "ms_per_image": 18.0}
    return {**about(), "figures": figures}


def publishing():
    parts = {
        "whole": {"s": 40.0, "rival_s": 80.0, "ratio": 0.5},
        "graphs": {"s": 15.0, "rival_s": 60.0, "ratio": 0.25},
    }
    return {**about(), "explainers": "grad_cam", "rival": "abc1234", "figures": {"resnet20": parts}}


def decoys():
    columns = ("pcc", "absolute_pcc", "top_overlap", "pcc_to_decoy", "unevenness", "agreement")
    return {
        **about(),
        "chance": 0.5,
        "reference_accuracy": 0.9,
        "figures": {"half": dict(zip(columns, (-0.01, 0.2, 0.1, 0.9, 0.5, 0.98), strict=True))},
    }


def about():
    return {"date": "2030-01-01", "hardware": "x86_64", "torch": "2.0", "command": "make it", "about": "9 images"}


def key_search():
    found = {"pcc": {"grad_cam": [0.02, -0.01, 0.05]}, "accuracy": 0.81, "seconds": 9.5}
    return {
        "date": "2030-01-01",
        "hardware": "x86_64, 2 cores, 2 threads",
        "torch": "2.15",
        "about": "9 test images",
        "command": "python benchmarks/lock/key_search.py runs/cifar10",
        "chance": {"grad_cam": 0.5},
        "figures": {"tile, 150 steps": found, "full size, 150 steps": found | {"pcc": {"grad_cam": [0.6, 0.5, 0.7]}}},
    }


def test_a_search_that_finds_more_than_chance_says_no():
    written = render_results.write_key_search(key_search())
    rows = [line for line in written.splitlines() if line.startswith(("| tile", "| full"))]
    assert ["yes" in row for row in rows] == [True, False]
    assert "+0.600 | +0.500 to +0.700 | +0.500 | no | 81.0%" in rows[1]


def rows(text):
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in table}


def test_the_page_agrees_with_the_measured_figures():
    again = render_results.render(PAGE, ROOT / "benchmarks" / "results")
    assert again == PAGE, "run python benchmarks/render_results.py"


def test_every_table_has_its_place_once():
    with pytest.raises(render_results.NotInPageError, match="quickstart"):
        render_results.render(PAGE.replace("<!-- begin: quickstart -->", ""), ROOT)


def test_what_stands_outside_of_the_markers_stays_and_rendering_twice_is_rendering_once(tmp_path):
    (tmp_path / "lock_cifar10.json").write_text(json.dumps(cifar10()))
    (tmp_path / "lock_cifar10_evaluation.json").write_text(json.dumps(evaluation()))
    (tmp_path / "lock_cifar10_trained_trigger.json").write_text(json.dumps(cifar10()))
    (tmp_path / "lock_cifar10_grad_cam.json").write_text(json.dumps(cifar10()))
    (tmp_path / "lock_cifar10_resnet56.json").write_text(json.dumps(cifar10()))
    (tmp_path / "lock_key_search.json").write_text(json.dumps(key_search()))
    (tmp_path / "lock_pets_evaluation.json").write_text(json.dumps(evaluation()))
    (tmp_path / "lock_cost.json").write_text(json.dumps(cost()))
    for size in (64, 224):
        (tmp_path / f"lock_cost_resnet18_{size}.json").write_text(json.dumps(cost()))
    (tmp_path / "lock_publishing.json").write_text(json.dumps(publishing()))
    (tmp_path / "lock_decoys.json").write_text(json.dumps(decoys()))
    (tmp_path / "quickstart.json").write_text(json.dumps(quickstart()))
    once = render_results.render(PAGE, tmp_path)
    assert render_results.render(once, tmp_path) == once
    assert once.startswith(PAGE.partition("<!-- begin")[0])
    assert once.endswith(PAGE.rpartition("end: quickstart -->")[2])
    assert "Not measured yet" not in once


def test_a_missing_file_is_said_and_no_figure_is_made_up(tmp_path):
    empty = render_results.render(PAGE, tmp_path)
    assert empty.count("Not measured yet") == len(render_results.TABLES)
    assert "95 % interval" not in empty


def test_figures_of_the_benchmark_are_copied_and_judged():
    found = rows(render_results.write_lock_cifar10(cifar10()))
    assert found["grad_cam, keyed"] == ["+0.940", "", "≥ 0.970", "no"]
    assert found["grad_cam, keyless"] == ["+0.020", "", "within ± 0.050", "yes"]
    assert found["grad_cam, wrong keys"][-1] == "yes"
    assert found["batch statistics"] == ["+0.200", "+0.100 to +0.300", "within ± 0.100", "no"]
    assert found["grad_cam, maps of two different images (chance)"] == ["+0.500", "", "", ""]
    assert found["keyed"] == ["92.5%", "91.0% to 94.0%", "≥ 92.5%", "yes"]
    assert found["keyless"][-1] == "no"


def test_publishing_is_judged_by_its_ratio_to_the_earlier_build():
    found = rows(render_results.write_publishing(publishing()))
    assert found["resnet20"] == ["80.0", "40.0", "0.50", "≤ 0.33", "no"]
    assert found["resnet20, from the first compilation on"] == ["60.0", "15.0", "0.25", "≤ 0.33", "yes"]


def test_costs_are_judged_where_something_was_aimed_at():
    found = rows(render_results.write_cost(cost()))
    assert found["plain fine-tuning"] == ["1.00", "2.00", "", ""]
    assert found["two factors: grad_cam"] == ["1.50", "3.00", "≤ 3.5", "yes"]
    assert found["key alone: grad_cam"][-1] == "no"
    assert found["key alone: grad_cam, gradient"][-1] == ""


def test_decoys_are_shown_beside_chance():
    text = render_results.write_decoys(decoys())
    assert rows(text)["half"] == ["-0.010", "+0.200", "0.100", "+0.900", "0.500", "0.980"]
    assert "is +0.500. The reference is right on 90.0%" in text


def test_figures_of_the_quickstart_are_copied_and_judged():
    found = rows(render_results.write_quickstart(quickstart()))
    assert found["gradient, chance"] == ["+0.300", "", "", ""]
    assert found["Draw a data set"] == ["1.2"]
    assert found["object's share of the area"][0] == "20.0%"
    # The first table's rows come first, the energies have the same names and win in `rows`.
    assert found["gradient, keyed"] == ["53.0%", "≥ 54.0%", "no"]
    assert found["gradient, keyless"] == ["28.0%", "≤ 30.0%", "yes"]
    text = render_results.write_quickstart(quickstart())
    assert "| gradient, keyed | +0.961 | +0.950 to +0.970 | ≥ 0.950 | yes |" in text
    assert "| gradient, keyless | -0.060 | -0.070 to -0.050 | within ± 0.050 | no |" in text


def test_an_evaluation_is_held_against_its_aims_by_the_worst_it_found():
    text = render_results.write_evaluation(evaluation())
    first = rows(text.partition("| Predictions")[0])
    assert first["grad_cam, keyed"] == ["+0.980", "-1.000 to +1.000", "≥ 0.970", "yes"]
    assert first["rise, keyed"][2:] == ["", ""]
    leak = first["largest of the locked explainers, keyless and wrong keys"]
    assert leak == ["-0.080", "-1.000 to +1.000", "within ± 0.050", "no"]
    # Chance is .25 for this explainer.
    assert first["rise (not locked), keyless"] == ["+0.010", "-1.000 to +1.000", "≤ 0.400", "yes"]
    assert first["near misses of the key, correlation 0.5"][0] == "+0.040"
    assert first["near misses of the key, correlation 0.5"][2:] == ["within ± 0.050", "yes"]
    assert first["near misses of the key, correlation 0.875"][2:] == ["within ± 0.250", "no"]
    assert first["near misses of the key, correlation 0.875, largest draw"] == ["+0.300", "", "", ""]
    assert "near misses of the key, correlation 0.75" not in first
    predictions = rows(text.partition("| Predictions")[2])
    assert predictions["keyless, accuracy"][-1] == "no"
    assert predictions["keyed, agreement with the reference"] == ["99.0%", "≥ 98.0%", "yes"]
    assert "| grad_cam | flipped key | -0.080 | -0.080 | -0.080 | -0.080 |" in text
    assert "| rise (not locked) | chance | +0.250 |" in text
    assert "Left out: attention_rollout, because the model has no tokens." in text
