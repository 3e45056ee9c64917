"""Gate curves and grids of maps as PNG and SVG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from keylock.evaluation.counting import counting_pairs
from keylock.evaluation.gate import GateCurve, Sweep
from keylock.evaluation.similarity import pearson
from keylock.imaging.heatmaps import colourise, without_peaks

__all__ = ["draw_gate", "draw_maps"]

_COLUMNS = {"reference": "reference", "keyed": "keyed", "keyless": "keyless", "wrong_key": "wrong key"}
_SWEEPS: tuple[tuple[Sweep, str], ...] = (
    ("correlation", "correlation with the key"),
    ("strength", "strength, in that of the key"),
)
_STYLE: dict[Any, Any] = {
    # The same picture gives the same file: ids of an SVG are drawn from this, and not at random.
    "svg.hashsalt": "keylock",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw_gate(curve: GateCurve, place: Path) -> tuple[Path, Path]:
    """Draw leakage against correlation with the key, and against its strength.

    The line is the mean, the band its 95 % interval, the dots are the largest draw, and the dashed line is chance; the
    legend says so, beside the colours of the explainers.

    Args:
        curve: What was measured.
        place: Where to, without a suffix.

    Returns:
        The PNG and the SVG file.
    """
    with mpl.rc_context(_STYLE):
        sheet = Figure(figsize=(10, 3.6), layout="constrained")
        axes = sheet.subplots(1, len(_SWEEPS), sharey=True, squeeze=False)[0]
        for number, explainer in enumerate(curve.chance):
            for axis, (sweep, _) in zip(axes, _SWEEPS, strict=True):
                _draw_line(axis, curve, sweep, explainer, f"C{number % 10}")
        for axis, (_, title) in zip(axes, _SWEEPS, strict=True):
            axis.set_xlabel(title)
            axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes[0].set_ylabel("PCC to the reference map")
        sheet.legend(handles=_legend(curve), loc="outside right upper", frameon=False)
        return _save(sheet, place)


def draw_maps(label: str, pixels: NDArray[np.uint8], samples: Mapping[str, Tensor], place: Path) -> tuple[Path, Path]:
    """Draw a grid of the maps of one explainer: a row for each image.

    Every map is scaled by itself, without its top hundredth, and its correlation with the reference map stands below.

    Args:
        label: What the explainer is called.
        pixels: Images (count, height, width, channels).
        samples: Maps (count, h, w) by `reference`, `keyed`, `keyless` and `wrong_key`; images without one are left out.
        place: Where to, without a suffix.

    Returns:
        The PNG and the SVG file.
    """
    # Of explainers that are slow there may be fewer maps than images.
    count = min(len(pixels), *(len(samples[kind]) for kind in _COLUMNS))
    pixels, samples = pixels[:count], {kind: samples[kind][:count] for kind in _COLUMNS}
    with mpl.rc_context(_STYLE):
        width, height = 1.3 * (1 + len(_COLUMNS)), 1.5 * len(pixels) + 0.5
        sheet = Figure(figsize=(width, height))
        # Laying out so many small axes by search takes seconds, and their sizes are known.
        sheet.subplots_adjust(
            left=0.01, right=0.99, bottom=0.22 / height, top=1 - 0.5 / height, wspace=0.06, hspace=0.22
        )
        sheet.suptitle(label, y=1 - 0.05 / height, va="top")
        axes = sheet.subplots(len(pixels), 1 + len(_COLUMNS), squeeze=False)
        for row, image in zip(axes, pixels, strict=True):
            row[0].imshow(image.squeeze(), cmap="gray", interpolation="nearest")
        for column, (kind, title) in enumerate(_COLUMNS.items(), start=1):
            axes[0, column].set_title(title)
            similar = pearson(samples[kind], samples["reference"])
            told = counting_pairs(samples[kind], samples["reference"], opened=kind == "keyed")
            for axis, saliency, value, tells in zip(axes[:, column], samples[kind], similar, told, strict=True):
                axis.imshow(colourise(without_peaks(saliency.float().numpy())), interpolation="nearest")
                if kind != "reference":
                    axis.set_xlabel(f"{float(value):+.2f}" if tells else "constant", labelpad=2)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
        return _save(sheet, place)


def _draw_line(axis: Axes, curve: GateCurve, sweep: Sweep, explainer: str, colour: str) -> None:
    points = curve.of(sweep, explainer)
    at: Any = [point.at for point in points]
    axis.plot(at, [point.mean for point in points], color=colour, label=explainer)
    axis.fill_between(
        at, [point.low for point in points], [point.high for point in points], color=colour, alpha=0.2, linewidth=0
    )
    axis.plot(at, [point.largest for point in points], ".", color=colour, markersize=4)
    axis.axhline(curve.chance[explainer], color=colour, linestyle="--", linewidth=0.8)


def _legend(curve: GateCurve) -> list[Artist]:
    """Return a line for each explainer, and in grey what lines, bands, dots and dashes are."""
    grey = "0.45"
    colours: list[Artist] = [
        Line2D([], [], color=f"C{number % 10}", label=explainer) for number, explainer in enumerate(curve.chance)
    ]
    return [
        *colours,
        Line2D([], [], color=grey, label="mean"),
        Patch(color=grey, alpha=0.3, linewidth=0, label="95 % interval"),
        Line2D([], [], color=grey, marker=".", linestyle="", label="largest draw"),
        Line2D([], [], color=grey, linestyle="--", linewidth=0.8, label="chance"),
    ]


def _save(sheet: Figure, place: Path) -> tuple[Path, Path]:
    png, svg = (place.with_name(f"{place.name}.{suffix}") for suffix in ("png", "svg"))
    sheet.savefig(png, dpi=150)
    sheet.savefig(svg, metadata={"Date": None})
    return png, svg
