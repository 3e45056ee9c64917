"""docs/models.md says what benchmarks/lock/architectures.py measured, network by network."""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

render_networks = importlib.import_module("render_networks")
render = importlib.import_module("render_results").render
PAGE = (ROOT / "docs" / "models.md").read_text("utf-8")

LOCKED = {
    "trains": True,
    "exports": True,
    "lock_cpu_s": 0.94,
    "keyed_pcc": 1.0,
    "keyless_pcc": -0.052,
    "keyed_agreement": 1.0,
    "keyed_logits": 2.2e-07,
    "sealed_entries": 40,
    "export_cpu_s": 6.25,
    "graph_pcc": 0.99996,
}


def result():
    torch_only = {key: value for key, value in LOCKED.items() if key not in ("export_cpu_s", "graph_pcc")}
    figures = {
        "resnet20:32": LOCKED,
        "one:64": {**torch_only, "exports": False, "why": "an operation is missing"},
        "two:64": {**LOCKED, "keyed_agreement": 0.75},
        "three:64": {"trains": False, "exports": False, "why": "no layers were found"},
    }
    head = {"date": "2030-01-01", "torch": "2", "torchvision": "0.1", "timm": None, "command": "run it"}
    return {**head, "figures": figures}


def test_the_page_agrees_with_the_figures():
    again = render(PAGE, ROOT / "benchmarks" / "results", render_networks.TABLES)
    assert again == PAGE, "run python benchmarks/render_networks.py"


def test_every_network_has_its_row_and_what_failed_its_reason():
    text = render_networks.write_networks(result())
    assert "torch 2, torchvision 0.1. Of 4 networks 2 are locked" in text
    assert "and 2 are compiled as well" in text
    for row in (
        "| resnet20, 32 px | 1.0000 | 100% | 2e-07 | -0.052 | 40 | 0.9 | 6.2 | 1.0000 |",
        "| two, 64 px | 1.0000 | 75% |",
        "| one, 64 px | 1.0000 | 100% | 2e-07 | -0.052 | 40 | 0.9 | - | - |",
        "| three, 64 px | - | - | - | - | - | - | - | - |",
        "| one, 64 px | an operation is missing |",
        "| three, 64 px | no layers were found |",
    ):
        assert row in text


def test_without_figures_none_is_made_up(tmp_path):
    assert "Not measured yet: `python benchmarks/lock/architectures.py`" in render(
        PAGE, tmp_path, render_networks.TABLES
    )
