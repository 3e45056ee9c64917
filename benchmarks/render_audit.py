"""Write the table of docs/threat-model.md from the figures of an audit in benchmarks/results.

    python benchmarks/render_audit.py            writes docs/threat-model.md
    python benchmarks/render_audit.py --check    exits 1 where docs/threat-model.md does not agree with the figures

It works as `render_results.py` does, which writes another page.
"""

import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from render_results import RESULTS, ROOT, Tables, code, table, update

PAGE = ROOT / "docs" / "threat-model.md"

_GROUPS = ("T0", "T1", "T2", "detection", "service")
_WANTED_MINUTES = {"quick": 3, "standard": 30}

Attack = Mapping[str, Any]
"""What the benchmark kept of one attack."""


def write_audit(result: Mapping[str, Any]) -> str:
    """Return the section of an audit, in Markdown: what failed, the worst first, and what is only measured."""
    attacks = result["attacks"]
    minutes, wanted = result["seconds"] / 60, _WANTED_MINUTES.get(result["suite"])
    aim = f", of which {wanted} were wanted: {'reached' if minutes <= wanted else 'not reached'}" if wanted else ""
    parts = [
        f"Measured on {result['date']}, {result['hardware']}{result.get('note', '')}; suite `{result['suite']}`, "
        f"{result['about']}, keylock {result['versions']['keylock']}, torch {result['versions']['torch']}. It took "
        f"{minutes:.1f} minutes{aim}.\n",
        code(result["command"]),
        table(
            ("attack", "attacker", "what was recovered", "PCC", "95 % interval", "beside", "accuracy", "price"),
            [_row(one) for one in attacks if one["verdict"] == "fail" and "pcc" in one],
        ),
    ]
    holes = [one for one in attacks if one["verdict"] == "fail" and one["checks"]]
    parts += [f"- {one['summary']} {check['name']}: {check['value']}" for one in holes for check in one["checks"]]
    parts += [""] * bool(holes)
    parts += ["What is measured and not promised:\n", write_measured(result)]
    verdicts = Counter((one["group"], one["verdict"]) for one in attacks)
    kinds = ("fail", "pass", "measured", "skipped", "error")
    rows = [(group, *(str(verdicts[group, kind] or "") for kind in kinds)) for group in _GROUPS]
    return "\n".join([*parts, table(("attacks", *kinds), [row for row in rows if any(row[1:])])])


def write_measured(result: Mapping[str, Any]) -> str:
    """Return the section of what is measured and not promised: T2 and detection."""
    rows = []
    for one in result["attacks"]:
        if one["verdict"] != "measured":
            continue
        if one["separation"] is not None:
            rows.append((one["summary"].rstrip("."), one["group"], "told apart", f"{one['separation']:.2f}", "0.50"))
        elif "pcc" in one:
            rows.append((one["summary"].rstrip("."), one["group"], *_recovered(one), f"{one['own']:.2f}"))
    return table(("attack", "attacker", "what was recovered", "PCC or probability", "beside"), rows)


def _recovered(one: Attack) -> tuple[str, str]:
    """Return what was recovered, with what it was compared with where that is something else; and how well."""
    label, truth = one["label"], one["truth"]
    return label if label.startswith(truth) else f"{label} ({truth})", f"{one['pcc'][0]:+.2f}"


def _row(one: Attack) -> tuple[str, ...]:
    what, pcc = _recovered(one)
    low, high = one["pcc"][1:]
    return (
        one["summary"].rstrip("."),
        one["group"],
        what,
        pcc,
        f"{low:+.2f} to {high:+.2f}",
        f"{one['own']:.2f}",
        "" if one["accuracy"] is None else f"{100 * one['accuracy']:.1f}%",
        _price(one["cost"]),
    )


def _price(cost: Mapping[str, float]) -> str:
    names = (("queries", "queries"), ("labelled", "labels"), ("steps", "steps"))
    parts = [f"{cost[key]:,.0f} {name}" for key, name in names if cost.get(key)]
    return ", ".join([*parts, f"{cost.get('seconds', 0):,.0f} s"])


TABLES: Tables = {
    "audit_cifar10": (write_audit, "python benchmarks/lock/audit.py runs/cifar10"),
    "audit_quickstart": (write_audit, "python benchmarks/lock/audit.py quickstart/shapes.klb --suite quick"),
}
"""For each file of figures how its section is written, and the command that writes the file."""

if __name__ == "__main__":
    sys.exit(update(PAGE, RESULTS, TABLES, __doc__))
