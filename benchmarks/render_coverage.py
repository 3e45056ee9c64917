"""Write the tables of docs/compiled-explanations.md from the measured figures in benchmarks/results.

    python benchmarks/render_coverage.py            writes docs/compiled-explanations.md
    python benchmarks/render_coverage.py --check    exits 1 where the page does not agree with the figures

It works as `render_results.py` does, which writes another page.
"""

import sys
from collections.abc import Mapping
from typing import Any

from render_results import RESULTS, ROOT, Tables, code, network_title, table, update

PAGE = ROOT / "docs" / "compiled-explanations.md"

_COST = ("grad_cam", "gradient", "visual_backprop")


def write_coverage(result: Mapping[str, Any]) -> str:
    """Return the section of `export_coverage.json`, in Markdown."""
    figures: Mapping[str, Mapping[str, Mapping[str, Any]]] = result["figures"]
    names = list(dict.fromkeys(name for found in figures.values() for name in found))
    loops = [name for name in names if any(found.get(name, {}).get("runtime") == "loop" for found in figures.values())]
    graphs = [name for name in names if name not in loops]
    runtimes = f"ONNX Runtime {result['onnxruntime']}"
    if result.get("openvino"):
        runtimes += f", OpenVINO {result['openvino']}"
    parts = [f"Measured on {result['date']}, {runtimes}, torch {result['torch']}.\n", code(result["command"])]
    if "note" in result:
        parts.append(f"{result['note']}\n")
    for title, chosen in (("One graph", graphs), ("Loops", loops)):
        cells = {network: [_cell(found.get(name)) for name in chosen] for network, found in figures.items()}
        rows = [(network_title(network), *row) for network, row in cells.items() if any(row)]
        parts += [f"### {title}\n", table(("network", *(f"`{name}`" for name in chosen)), rows)]
        there = {network: [_cell_in_openvino(found.get(name)) for name in chosen] for network, found in figures.items()}
        rows = [(network_title(network), *row) for network, row in there.items() if any(row)]
        if rows:
            parts += [f"### {title}, in OpenVINO\n", table(("network", *(f"`{name}`" for name in chosen)), rows)]
    parts += [
        "### Cost\n",
        table(("network", *_head()), [(network_title(k), *_costs(found)) for k, found in figures.items()]),
    ]
    reasons = [
        (network_title(network), f"`{name}`", entry["why"])
        for network, found in figures.items()
        for name, entry in found.items()
        if entry["runtime"] == "torch"
    ]
    if reasons:
        parts += ["### Left to torch\n", table(("network", "explainer", "why"), reasons)]
    return "\n".join(parts)


def _cell(entry: Mapping[str, Any] | None) -> str:
    """Return the smallest correlation and the largest difference of a map, or what there is in their place."""
    if entry is None:
        return ""
    if entry["runtime"] in {"torch", "none"}:
        return "torch" if entry["runtime"] == "torch" else "does not fit"
    return f"{entry['pcc_minimum']:.5f}, {entry['max_difference']:.0e}"


def _cell_in_openvino(entry: Mapping[str, Any] | None) -> str:
    """Return the same in OpenVINO in float32, and the smallest correlation in bfloat16 where it was computed."""
    found = (entry or {}).get("openvino", {})
    if not found:
        return ""
    exact, rounded = found["float32"], found.get("bfloat16", {})
    if "wrong" in exact:
        return "wrong"
    cell = f"{exact['pcc_minimum']:.5f}, {exact['max_difference']:.0e}"
    if "wrong" in rounded:
        return f"{cell}; fails"
    return f"{cell}; {rounded['pcc_minimum']:.4f}" if rounded else cell


def _head() -> tuple[str, ...]:
    return (*(f"`{name}` / prediction" for name in _COST), "largest file, MB", "compilation, CPU s")


def _costs(found: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    compiled = {name: entry for name, entry in found.items() if entry["runtime"] == "compiled"}
    most = [max((entry[key] for entry in compiled.values()), default=0.0) for key in ("file_mb", "compile_cpu_s")]
    times = (compiled.get(name, {}).get("times_prediction") for name in _COST)
    return (*("" if value is None else f"{value:.2f}" for value in times), *(f"{value:.1f}" for value in most))


def write_variants(result: Mapping[str, Any]) -> str:
    """Return the section of `lock_variants.json`, in Markdown."""
    rows = [
        (
            name,
            variant,
            f"{figure['agreement']:.1%}",
            *(
                "" if figure[key] is None else f"{figure[key]:.4f}"
                for key in ("keyed_pcc", "leakage", "leakage_float32")
            ),
            f"{figure['share_of_file']:.0%}",
            "yes" if figure["shortfall"] is None else "no",
        )
        for name, variants in result["figures"].items()
        for variant, figure in variants.items()
    ]
    head = ("graph", "variant", "classes that stay", "keyed PCC to float32", "keyless PCC to true maps")
    head += ("the same in float32", "size of the file", "offered")
    about = f"Measured on {result['date']}, ONNX Runtime {result['onnxruntime']}: {result['about']}.\n"
    return "\n".join([about, code(result["command"]), table(head, rows)])


TABLES: Tables = {
    "lock_variants": (write_variants, "python benchmarks/lock/variants.py runs/cifar10 --data cifar10.npz"),
    "export_coverage": (write_coverage, "python benchmarks/export_coverage.py"),
}
"""For each file of figures how its section is written, and the command that writes the file."""

if __name__ == "__main__":
    sys.exit(update(PAGE, RESULTS, TABLES, __doc__))
