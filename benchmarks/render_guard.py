"""Write the tables of docs/query-guard.md from the measured figures in benchmarks/results.

    python benchmarks/render_guard.py            writes docs/query-guard.md
    python benchmarks/render_guard.py --check    exits 1 where the page does not agree with the figures

It works as `render_results.py` does, which writes another page.
"""

import sys
from collections.abc import Mapping
from typing import Any

from render_results import RESULTS, ROOT, Tables, code, table, update

PAGE = ROOT / "docs" / "query-guard.md"


def write_honest(result: Mapping[str, Any]) -> str:
    """Return the section of `guard_honest.json`, in Markdown."""
    head = ("traffic", "what it is", "pictures", "near copies", "refused", "refused with labels too", "CPU ms each")
    counts = ("pictures", "near_copies", "refused", "refused_labels_too")
    rows = [
        (
            name.replace("_", " "),
            one["about"],
            *(f"{one[key]:,}" for key in counts),
            f"{one['cpu_ms_per_picture']:.2f}",
        )
        for name, one in result["traffic"].items()
    ]
    about = f"Measured on {result['date']}, {result['hardware']}.\n"
    return "\n".join((about, code(result["command"]), table(head, rows)))


def write_recovered(result: Mapping[str, Any]) -> str:
    """Return the section of `guard.json`, in Markdown."""
    head = ("attacker", "answered", "correlation", "chance", "above chance", "truth")
    limits = result["limits"]
    about = (
        f"Measured on {result['date']}, {result['hardware']}; {result['about']}. {limits['scores']} near copies are "
        f"answered with scores, {limits['labels']} in all with labels.\n"
    )
    parts = [about, code(result["command"])]
    for kind, what in (("plain", "Plain"), ("adaptive", "Adaptive"), ("curve", "Budgets")):
        rows = [
            (
                name,
                f"{one['answered']:.1f}",
                f"{one['pcc']:+.2f}",
                f"{one['chance']:.2f}",
                f"{one['pcc'] - one['chance']:+.2f}",
                one["truth"],
            )
            for name, one in result[kind].items()
        ]
        parts += [f"{what}:\n", table(head, rows)] if rows else [f"{what}: not measured yet.\n"]
    return "\n".join(parts)


TABLES: Tables = {
    "guard_honest": (write_honest, "python benchmarks/guard/honest.py --data DATA"),
    "guard": (write_recovered, "python benchmarks/guard/recover.py shapes.klb --data shapes"),
}
"""For each file of figures how its section is written, and the command that writes the file."""

if __name__ == "__main__":
    sys.exit(update(PAGE, RESULTS, TABLES, __doc__))
