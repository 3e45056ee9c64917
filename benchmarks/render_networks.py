"""Write the table of docs/models.md from the measured figures in benchmarks/results.

    python benchmarks/render_networks.py            writes docs/models.md
    python benchmarks/render_networks.py --check    exits 1 where the page does not agree with the figures

It works as `render_results.py` does, which writes another page.
"""

import sys
from collections.abc import Mapping
from typing import Any

from render_results import RESULTS, ROOT, Tables, code, network_title, table, update

PAGE = ROOT / "docs" / "models.md"


def write_networks(result: Mapping[str, Any]) -> str:
    """Return the section of `lock_architectures.json`, in Markdown."""
    figures: Mapping[str, Mapping[str, Any]] = result["figures"]
    exact = sum(entry.get("keyed_pcc", 0) >= 0.9999 and entry["keyed_agreement"] == 1 for entry in figures.values())
    compiled = sum(entry["exports"] for entry in figures.values())
    versions = ", ".join(f"{name} {result[name]}" for name in ("torch", "torchvision", "timm") if result[name])
    about = (
        f"Measured on {result['date']}, {versions}. Of {len(figures)} networks {exact} are locked and opened to keyed "
        f"maps (Grad-CAM) with a PCC of 1.000 to the reference's and its predictions, and {compiled} are compiled as "
        "well.\n"
    )
    head = ("network", "keyed PCC", "keyed predictions equal", "largest difference of a logit", "keyless PCC")
    head += ("sealed tensors", "lock of 3 steps, CPU s", "compilation, CPU s", "PCC of the graph to torch")
    parts = [about, code(result["command"]), table(head, [_row(*entry) for entry in figures.items()])]
    reasons = [(network_title(name), entry["why"]) for name, entry in figures.items() if "why" in entry]
    if reasons:
        parts += ["What could not be done, in keylock's words:\n", table(("network", "why"), reasons)]
    return "\n".join(parts)


def _row(name: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    shown = [network_title(name)]
    forms = (("keyed_pcc", ".4f"), ("keyed_agreement", ".0%"), ("keyed_logits", ".0e"), ("keyless_pcc", ".3f"))
    forms += (("sealed_entries", "d"), ("lock_cpu_s", ".1f"), ("export_cpu_s", ".1f"), ("graph_pcc", ".4f"))
    for key, form in forms:
        shown.append(format(entry[key], form) if key in entry else "-")
    return tuple(shown)


TABLES: Tables = {"lock_architectures": (write_networks, "python benchmarks/lock/architectures.py")}
"""For each file of figures how its section is written, and the command that writes the file."""

if __name__ == "__main__":
    sys.exit(update(PAGE, RESULTS, TABLES, __doc__))
