"""docs/compiled-explanations.md says what benchmarks/export_coverage.py measured, and says what does not compile."""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

render_coverage = importlib.import_module("render_coverage")
render = importlib.import_module("render_results").render
PAGE = (ROOT / "docs" / "compiled-explanations.md").read_text("utf-8")


def graph(**changes):
    found = {"pcc_mean": 1.0, "pcc_minimum": 0.99991, "max_difference": 2.04e-3}
    return {"runtime": "compiled", **found, "compile_cpu_s": 3.2, "file_mb": 1.1, "times_prediction": 1.016, **changes}


def result():
    loop = {"runtime": "loop", "reads": "logits", "passes": 49, "pcc_minimum": 1.0, "max_difference": 1e-6}
    exact = {"float32": {"pcc_minimum": 0.99996, "max_difference": 3e-4}}
    both = {**exact, "bfloat16": {"pcc_minimum": 0.99981, "max_difference": 2e-2}}
    wrong = {"float32": {"pcc_minimum": 0.3, "max_difference": 1.0, "wrong": "it computes something else"}}
    figures = {
        "resnet20:32": {
            "grad_cam": graph(openvino=both),
            "gradient": graph(file_mb=2.1, times_prediction=2.5, openvino=wrong),
            "occlusion": {**loop, "openvino": exact},
        },
        "vit_tiny:32": {
            "grad_cam": graph(),
            "gradient": {"runtime": "torch", "why": "an operation is missing"},
            "occlusion": {"runtime": "none", "why": "it reads maps"},
        },
    }
    head = {
        "date": "2030-01-01",
        "onnxruntime": "1",
        "openvino": "3",
        "torch": "2",
        "command": "run it",
        "note": "One is left out.",
    }
    return {**head, "figures": figures}


def test_the_page_agrees_with_the_figures():
    again = render(PAGE, ROOT / "benchmarks" / "results", render_coverage.TABLES)
    assert again == PAGE, "run python benchmarks/render_coverage.py"


def test_every_pair_is_told_with_what_was_measured_or_why_not():
    text = render_coverage.write_coverage(result())
    for row in (
        "One is left out.",
        "| network | `grad_cam` | `gradient` |",
        "| resnet20, 32 px | 0.99991, 2e-03 | 0.99991, 2e-03 |",
        "| vit_tiny, 32 px | 0.99991, 2e-03 | torch |",
        "| resnet20, 32 px | 1.00000, 1e-06 |",
        "| vit_tiny, 32 px | does not fit |",
        "| resnet20, 32 px | 1.02 | 2.50 | 2.1 | 3.2 |",
        "| vit_tiny, 32 px | 1.02 |  | 1.1 | 3.2 |",
        "| vit_tiny, 32 px | `gradient` | an operation is missing |",
        "| resnet20, 32 px | 0.99996, 3e-04; 0.9998 | wrong |",
        "| resnet20, 32 px | 0.99996, 3e-04 |",
        "OpenVINO 3, torch 2",
    ):
        assert row in text


def test_without_figures_none_is_made_up(tmp_path):
    empty = render(PAGE, tmp_path, render_coverage.TABLES)
    assert empty.count("Not measured yet") == len(render_coverage.TABLES)


def test_variants_say_what_is_left_of_the_lock():
    good = {"agreement": 0.991, "keyed_pcc": 0.9978, "leakage": -0.0124, "leakage_float32": -0.0125}
    result = {
        "date": "2030-01-01",
        "onnxruntime": "1",
        "about": "9 images",
        "command": "run it",
        "figures": {
            "grad_cam": {"int8": {**good, "share_of_file": 0.309, "shortfall": None}},
            "predictions": {
                "int8": {"agreement": 0.9, "keyed_pcc": None, "leakage": None, "leakage_float32": None}
                | {"share_of_file": 0.25, "shortfall": "too few"}
            },
        },
    }
    text = render_coverage.write_variants(result)
    assert "| grad_cam | int8 | 99.1% | 0.9978 | -0.0124 | -0.0125 | 31% | yes |" in text
    assert "| predictions | int8 | 90.0% |  |  |  | 25% | no |" in text
