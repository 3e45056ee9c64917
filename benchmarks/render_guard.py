"""Write the tables of docs/query-guard.md from the measured figures in benchmarks/results.

    python benchmarks/render_guard.py            writes docs/query-guard.md
    python benchmarks/render_guard.py --check    exits 1 where the page does not agree with the figures

It works as `render_results.py` does, which writes another page.
"""

import sys
from collections.abc import Mapping, Sequence
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
    """Return the section of `guard.json` and its like, in Markdown."""
    limits = result["limits"]
    about = (
        f"Measured on {result['date']}, {result['hardware']}; {result['about']}. The guard's budgets were those of a "
        f"server by default: {limits['scores']} for scores, {limits['labels']} for labels. It took "
        f"{result['cpu_minutes']:.0f} minutes of processor time.\n"
    )
    parts = [about, code(result["command"])]
    for kind, what in (("plain", "Plain"), ("adaptive", "Adaptive")):
        if result[kind]:
            parts += [f"{what}:\n", _attackers(result[kind])]
    if result["unguarded"]:
        parts += ["Without a guard:\n", _attackers({name: {"": one} for name, one in result["unguarded"].items()})]
    for kind, curve in result["curve"].items():
        if curve:
            parts += [f"Above chance, by the budget for {kind}:\n", _curve(curve)]
    return "\n".join(parts)


def _attackers(found: Mapping[str, Any]) -> str:
    counts = list(next(iter(found.values())))
    sizes = [f"above chance{f', {count} copies' if count else ''}" for count in counts]
    head = ("attacker", "copies", "scores", "labels", *sizes, "answers shuffled", "truth")
    rows = []
    for name, by_count in found.items():
        last = by_count[counts[-1]]
        rows.append(
            (
                name.replace("_", " "),
                str(last["copies"]),
                f"{last['scores']:.1f}",
                f"{last['labels']:.1f}",
                *(_interval(by_count[count]["excess"]) for count in counts),
                f"{last['null'][0]:+.2f}, at most {last['null'][1]:+.2f}",
                f"{last['truth'].replace('_', ' ')} ({last['chance']:.2f})",
            )
        )
    return table(head, rows)


def _curve(curve: Mapping[str, Any]) -> str:
    budgets = list(next(iter(curve.values())))
    rows = [
        (name.replace("_", " "), *(f"{found[budget]['excess'][0]:+.2f}" for budget in budgets))
        for name, found in curve.items()
    ]
    return table(("method", *budgets), rows)


def _interval(excess: Sequence[float]) -> str:
    mean, low, high = excess
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


_RECOVER = "python benchmarks/guard/recover.py"

TABLES: Tables = {
    "guard_honest": (write_honest, "python benchmarks/guard/honest.py --data DATA"),
    "guard": (write_recovered, f"{_RECOVER} shapes.klb --data shapes"),
    "guard_cifar10": (
        write_recovered,
        f"{_RECOVER} runs/cifar10 --data cifar10.npz --reference cifar10_resnet20.npz",
    ),
    "guard_server": (write_recovered, f"{_RECOVER} shapes.klb --data shapes --server --images 8 --copies 100"),
}
"""For each file of figures how its section is written, and the command that writes the file."""

if __name__ == "__main__":
    sys.exit(update(PAGE, RESULTS, TABLES, __doc__))
