"""The curves of benchmarks/results/guard.json over the guard's budgets, as SVG in docs/images.

python benchmarks/guard/plots.py
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_ROOT = Path(__file__).resolve().parents[2]
_RESULTS = _ROOT / "benchmarks" / "results" / "guard.json"
_IMAGE = _ROOT / "docs" / "images" / "guard_budgets.svg"
_PANELS = {"scores": "Scores answered", "labels": "Labels answered, as the guard counts them"}
_NAMES = {"occlusion": "occlusion", "rise": "RISE", "lime": "LIME", "kernel_shap": "KernelSHAP"}
_MARKERS = ("o", "s", "^", "D")


def main() -> None:
    """Draw them anew."""
    result = json.loads(_RESULTS.read_text("utf-8"))
    # The same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "guard"
    mpl.use("svg")
    draw(result, _IMAGE)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw what each method recovers over the budget of the near copies of a picture."""
    # One below the other, so that they can be read on a narrow page too; on white, so that they can on a dark one.
    shown, axes = plt.subplots(len(_PANELS), 1, figsize=(6, 7), sharey=True, facecolor="white")
    for panel, (kind, title) in zip(axes, _PANELS.items(), strict=True):
        _draw_panel(panel, result["curve"][kind], title, default=str(result["limits"][kind]))
    handles, names = axes[0].get_legend_handles_labels()
    shown.legend(handles, names, loc="lower center", ncols=len(names), frameon=False)
    shown.tight_layout(rect=(0, 0.04, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    shown.savefig(path, metadata={"Date": None})
    plt.close(shown)


def _draw_panel(panel: Axes, curve: Mapping[str, Any], title: str, *, default: str) -> None:
    budgets = list(next(iter(curve.values())))
    places = range(len(budgets))
    for colour, (name, found) in enumerate(curve.items()):
        means, lows, highs = zip(*(found[budget]["excess"] for budget in budgets), strict=True)
        panel.plot(places, means, color=f"C{colour}", marker=_MARKERS[colour], label=_NAMES[name])
        panel.fill_between(places, lows, highs, color=f"C{colour}", alpha=0.1, linewidth=0)
    panel.axhline(0, color="black", linewidth=0.8)
    if default in budgets:
        panel.axvline(budgets.index(default), color="black", linestyle=":", linewidth=1)
        panel.annotate(
            "default", (budgets.index(default), 0.98), xycoords=("data", "axes fraction"), ha="left", va="top"
        )
    panel.set_xticks(places, budgets)
    panel.set_title(title, fontsize=11)
    panel.set_xlabel("budget of the near copies of a picture")
    panel.set_ylabel("correlation above chance")


if __name__ == "__main__":
    main()
