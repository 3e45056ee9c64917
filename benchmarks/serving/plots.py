"""Plots of benchmarks/results/serving/serving.json, as SVG in docs/images.

python benchmarks/serving/plots.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

_ROOT = Path(__file__).resolve().parents[2]
_RESULTS = _ROOT / "benchmarks" / "results" / "serving" / "serving.json"
_IMAGES = _ROOT / "docs" / "images"
_PLOTS = {"throughput": ("images_per_s", "images a second"), "latency": ("p50_ms", "median latency in ms")}


def main() -> None:
    """Draw them anew."""
    result = json.loads(_RESULTS.read_text("utf-8"))
    # The same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "serving"
    mpl.use("svg")
    for name, (figure, label) in _PLOTS.items():
        draw(result, figure, label, _IMAGES / f"serving_{name}.svg")


def draw(result: dict[str, Any], figure: str, label: str, path: Path) -> None:
    """Draw one figure of all servers, over concurrency, a panel for each network and explainer."""
    tasks = ("grad_cam", "gradient")
    networks = result["networks"]
    shown, axes = plt.subplots(len(networks), len(tasks), figsize=(9, 3.2 * len(networks)), squeeze=False)
    names = [name for name in result["titles"] if name not in result["bare"]]
    for row, (side, network) in enumerate(networks.items()):
        for column, task in enumerate(tasks):
            panel = axes[row][column]
            found = network["figures"].get(task, {})
            for place, name in enumerate(names):
                if name in found:
                    at = [int(callers) for callers in found[name]]
                    values = [value[figure] for value in found[name].values()]
                    panel.plot(at, values, marker="o", color=f"C{place}", label=result["titles"][name])
            panel.set_xscale("log", base=2)
            panel.set_xticks(at, [str(callers) for callers in at])
            panel.set_ylim(bottom=0)
            panel.set_title(f"{network['about']['architecture']}, {side} pixels, {task}", fontsize=10)
            panel.set_xlabel("callers")
            panel.set_ylabel(label)
    handles, titles = axes[0][0].get_legend_handles_labels()
    shown.legend(handles, titles, loc="lower center", ncols=3, frameon=False, fontsize=9)
    shown.tight_layout(rect=(0, 0.08, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    shown.savefig(path, metadata={"Date": None})
    plt.close(shown)


if __name__ == "__main__":
    main()
