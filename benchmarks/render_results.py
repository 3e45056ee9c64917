"""Write the tables of docs/results.md from the measured figures in benchmarks/results.

    python benchmarks/render_results.py            writes docs/results.md
    python benchmarks/render_results.py --check    exits 1 where docs/results.md does not agree with the figures

A table stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`, where NAME.json has its figures. What is outside
of the markers is written by hand and left alone. A figure is only ever copied from a file that a run wrote.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"

Figures = Mapping[str, Mapping[str, Any]]
"""A measured figure by its name: `value`, and `low` and `high`, the ends of its 95 % interval, where it has one."""

Tables: TypeAlias = dict[str, tuple[Callable[[Mapping[str, Any]], str], str]]
"""For each file of figures how its section is written, and the command that writes the file."""

_INPUTS = {"reference": "reference", "keyed": "keyed", "keyless": "keyless", "wrong_key": "wrong key"}
_NO_KEY = ("keyless", "wrong_key", "flipped_key")
_COST = 3.5
_PUBLISHING = 1 / 3
_CAM_FAMILY = ("grad_cam", "grad_cam, reference maps remembered")
_ACCURACY_LOSS = 0.005
_ABOVE_CHANCE = 0.15
_REGIONS = ("pointing", "energy")
_GATE = {0.5: 0.05, 0.75: 0.1, 0.875: 0.25}


class NotInPageError(Exception):
    """The page has no place for a table."""


def main() -> int:
    """Write docs/results.md, or compare it."""
    return update(PAGE, RESULTS, TABLES, __doc__)


def update(page: Path, results: Path, tables: Tables, about: str | None) -> int:
    """Write a page, or with `--check` compare it.

    Args:
        page: The page.
        results: Folder of the measured figures.
        tables: The tables of the page.
        about: What `--help` says.

    Returns:
        The exit code: 1 where the page does not agree with the figures.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    options = parser.parse_args()
    text = page.read_text("utf-8")
    wanted = render(text, results, tables)
    if options.check:
        if wanted != text:
            print(f"docs/{page.name} does not agree with the figures: run python {Path(sys.argv[0]).name}")
        return int(wanted != text)
    page.write_text(wanted, encoding="utf-8")
    return 0


def render(text: str, results: Path, tables: Tables | None = None) -> str:
    """Return a page with its tables written anew.

    Args:
        text: The page.
        results: Folder of the measured figures.
        tables: The tables of the page; those of docs/results.md unless given.

    Raises:
        NotInPageError: The markers of a table are missing.
    """
    for name, (write, command) in (TABLES if tables is None else tables).items():
        file = results / f"{name}.json"
        body = write(json.loads(file.read_text("utf-8"))) if file.is_file() else f"Not measured yet: `{command}`.\n"
        pattern = re.compile(rf"(<!-- begin: {name} -->\n).*?(<!-- end: {name} -->\n)", re.DOTALL)
        # A function, because figures could hold what a replacement text would interpret.
        text, found = pattern.subn(lambda match, body=body: f"{match[1]}\n{body}\n{match[2]}", text)
        if found != 1:
            raise NotInPageError(f"the page needs the markers of {name!r} once, and has them {found} times")
    return text


def write_lock_cifar10(result: Mapping[str, Any]) -> str:
    """Return the section of `lock_cifar10.json`, in Markdown."""
    figures: Figures = result["figures"]
    attacks: Figures = result["keyless_pcc_under"]
    reference = figures["accuracy/reference"]["value"]
    names = [name.removeprefix("fidelity/") for name in figures if name.startswith("fidelity/")]
    rows: list[tuple[str, Mapping[str, Any], Aim | None]] = []
    for name in names:
        rows += [
            (f"{name}, keyed", figures[f"fidelity/{name}"], _FIDELITY.get(name)),
            (f"{name}, keyless", figures[f"leakage/keyless/{name}"], near_zero(0.05)),
            (f"{name}, wrong keys", figures[f"leakage/wrong_key/{name}"], near_zero(0.05)),
            (f"{name}, maps of two different images (chance)", figures[f"chance/{name}"], None),
        ]
    rows += [(name, figure, _attack_aim(name)) for name, figure in attacks.items()]
    accuracies = [
        (
            _INPUTS[kind],
            figures[f"accuracy/{kind}"],
            None if kind == "reference" else at_least(reference - _ACCURACY_LOSS),
        )
        for kind in _INPUTS
        if f"accuracy/{kind}" in figures
    ]
    about = (
        f"Measured on {result['date']}, {result['hardware']}, torch {result['torch']}; "
        f"{figures['accuracy/reference']['about']}. "
        f"All of it took {result['seconds'] / 60:.1f} minutes ({result['cpu_seconds'] / 60:.1f} of CPU time)."
    )
    parts = [
        about,
        code(result["command"]),
        _aimed("Correlation with the reference map", "PCC", rows, "{:+.3f}"),
        _aimed("Accuracy", "accuracy", accuracies, "{:.1%}"),
    ]
    return "\n".join(parts)


def write_evaluation(result: Mapping[str, Any]) -> str:
    """Return the section of what `keylock evaluate --json` printed, in Markdown: the aims, and every explainer."""
    figures: Figures = {figure["name"]: figure for figure in result["figures"]}
    locked = [entry["label"] for entry in result["explainers"] if entry["locked"]]
    unseen = [entry["label"] for entry in result["explainers"] if not entry["locked"]]
    rows = [(f"{label}, keyed", figures[f"pcc/keyed/{label}"], _FIDELITY.get(label)) for label in (*locked, *unseen)]
    leaks = [figures[f"pcc/{kind}/{label}"] for kind in _NO_KEY for label in locked]
    if leaks:
        rows.append(("largest of the locked explainers, keyless and wrong keys", _largest(leaks), near_zero(0.05)))
    for label in unseen:
        limit = figures[f"pcc/chance/{label}"]["value"] + _ABOVE_CHANCE
        rows.append((f"{label} (not locked), keyless", figures[f"pcc/keyless/{label}"], at_most(round(limit, 3))))
    rows += _gate_rows(result["gate"])
    predictions = [("reference, accuracy", figures["accuracy/reference"], None)]
    least = figures["accuracy/reference"]["value"] - _ACCURACY_LOSS
    predictions += [
        (f"{kind}, accuracy", figures[f"accuracy/{kind}"], at_least(least)) for kind in ("keyed", "keyless")
    ]
    predictions += [
        (f"{kind}, agreement with the reference", figures[f"agreement/{kind}"], at_least(0.98))
        for kind in ("keyed", "keyless")
    ]
    parts = [
        f"Measured on {result['date']}, {result['hardware']}, torch {result['torch']}; {result['about']}.",
        code(result["command"]),
        _aimed("Correlation with the reference map", "PCC", rows, "{:+.3f}"),
        _aimed("Predictions", "share", predictions, "{:.1%}"),
        _similarities(figures, locked, unseen),
        _localisation(figures, [*locked, *unseen]),
    ]
    parts += [f"Left out: {name}, because {why}.\n" for name, why in result["skipped"].items()]
    return "\n".join(parts)


def _gate_rows(gate: Mapping[str, Any] | None) -> list[tuple[str, Mapping[str, Any], "Aim | None"]]:
    """Return what near misses of the key show: by the worst explainer, the mean and the largest single draw."""
    rows: list[tuple[str, Mapping[str, Any], Aim | None]] = []
    measured = [] if gate is None else [point for point in gate["points"] if point["sweep"] == "correlation"]
    for at, limit in _GATE.items():
        points = [point for point in measured if point["at"] == at]
        if points:
            worst = _largest([{**point, "value": point["mean"]} for point in points])
            rows.append((f"near misses of the key, correlation {at}", worst, near_zero(limit)))
            draw = {"value": max(point["largest"] for point in points)}
            rows.append((f"near misses of the key, correlation {at}, largest draw", draw, None))
    return rows


def _largest(figures: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    return max(figures, key=lambda figure: abs(figure["value"]))


def _similarities(figures: Figures, locked: list[str], unseen: list[str]) -> str:
    """Return all similarities of all explainers, with every kind of input."""
    head = ("Explainer", "input", "PCC", "SSIM", "Spearman", "top 10 %")
    names = ("pcc", "ssim", "spearman", "top_overlap")
    rows = [
        (shown, kind.replace("_", " "), *(f"{figures[f'{name}/{kind}/{label}']['value']:+.3f}" for name in names))
        for label, shown in [*zip(locked, locked, strict=True), *((label, f"{label} (not locked)") for label in unseen)]
        for kind in ("keyed", *_NO_KEY, "chance")
    ]
    return table(head, rows)


def write_cost(result: Mapping[str, Any]) -> str:
    """Return the section of `lock_cost.json`, in Markdown: what a step costs beside plain fine-tuning."""
    cells = []
    for name, figure in result["figures"].items():
        _, _, explainers = name.partition(": ")
        most = result.get("aim", _COST)
        aim = at_most(most) if explainers in _CAM_FAMILY else None
        reached = "" if aim is None else "yes" if aim.reached(figure["ratio"]) else "no"
        wanted = "" if aim is None else f"≤ {most}"
        cells.append((name, f"{figure['ratio']:.2f}", f"{figure['ms_per_image']:.2f}", wanted, reached))
    steps = table(("step", "times plain fine-tuning", "ms of CPU time for an image", "aim", "reached"), cells)
    return "\n".join([_measured(result), code(result["command"]), steps])


def write_publishing(result: Mapping[str, Any]) -> str:
    """Return the section of `lock_publishing.json`, in Markdown: what follows the steps, beside an earlier build."""
    aim = at_most(_PUBLISHING)
    parts = {"whole": "", "graphs": ", from the first compilation on"}
    figures = {
        f"{name}{suffix}": found[part] for name, found in result["figures"].items() for part, suffix in parts.items()
    }
    cells = [
        (name, f"{figure['rival_s']:.1f}", f"{figure['s']:.1f}", f"{figure['ratio']:.2f}", f"≤ {_PUBLISHING:.2f}",
         "yes" if aim.reached(figure["ratio"]) else "no")
        for name, figure in figures.items()
    ]  # fmt: skip
    about = (
        f"Measured on {result['date']}, {result['hardware']}, torch {result['torch']}: seconds of processor time on "
        f"one thread; explainers {result['explainers'].replace(',', ', ')}. The earlier build is {result['rival']}.\n"
    )
    head = ("network", "earlier build, s", "this build, s", "ratio", "aim", "reached")
    return "\n".join([about, code(result["command"]), table(head, cells)])


def write_decoys(result: Mapping[str, Any]) -> str:
    """Return the section of `lock_decoys.json`, in Markdown: what keyless maps show, by decoy."""
    columns = {
        "pcc": "PCC to the true map",
        "absolute_pcc": "its size on single images",
        "top_overlap": "top 10 % in common",
        "pcc_to_decoy": "PCC to the decoy",
        "unevenness": "unevenness",
        "agreement": "agreement of predictions",
    }
    cells = [
        (name, *(f"{figure[column]:+.3f}" if "pcc" in column else f"{figure[column]:.3f}" for column in columns))
        for name, figure in result["figures"].items()
    ]
    chance = (
        f"Chance, the PCC of true maps of two different images, is {result['chance']:+.3f}. The reference is right on "
        f"{result['reference_accuracy']:.1%} of the images.\n"
    )
    return "\n".join([_measured(result), code(result["command"]), table(("decoy", *columns.values()), cells), chance])


def write_key_search(result: Mapping[str, Any]) -> str:
    """Return the section of `lock_key_search.json`, in Markdown: the maps that found perturbations show."""
    cells = []
    for name, figure in result["figures"].items():
        for explainer, (value, low, high) in figure["pcc"].items():
            chance = result["chance"][explainer]
            cells.append(
                (
                    name,
                    explainer,
                    f"{value:+.3f}",
                    f"{low:+.3f} to {high:+.3f}",
                    f"{chance:+.3f}",
                    "yes" if abs(value) <= chance else "no",
                    f"{figure['accuracy']:.1%}",
                )
            )
    head = ("search", "explainer", "PCC", "95 % interval", "chance", "at most chance", "accuracy")
    return "\n".join([_measured(result), code(result["command"]), table(head, cells)])


def _measured(result: Mapping[str, Any]) -> str:
    """Return when, where and on what something was measured, as a paragraph."""
    return f"Measured on {result['date']}, {result['hardware']}, torch {result['torch']}; {result['about']}.\n"


def _localisation(figures: Figures, labels: list[str]) -> str:
    """Return how maps hit the object, with every kind of input, where the data have masks."""
    rows = [
        (label, kind.replace("_", " "), *(f"{figures[f'{name}/{kind}/{label}']['value']:.3f}" for name in _REGIONS))
        for label in labels
        for kind in ("reference", "keyed", *_NO_KEY, "random")
        if all(f"{name}/{kind}/{label}" in figures for name in _REGIONS)
    ]
    return table(("Explainer", "input", "points at the object", "energy inside it"), rows) if rows else ""


def write_quickstart(result: Mapping[str, Any]) -> str:
    """Return the section of `quickstart.json`, in Markdown."""
    figures: Figures = {figure["name"]: figure for figure in result["figures"]}
    names = [name.removeprefix("fidelity/") for name in figures if name.startswith("fidelity/")]
    rows = []
    for name in names:
        rows += [
            (f"{name}, keyed", figures[f"fidelity/{name}"], at_least(0.95)),
            (f"{name}, keyless", figures[f"leakage/keyless/{name}"], near_zero(0.05)),
            (f"{name}, wrong key", figures[f"leakage/wrong_key/{name}"], None),
            *((f"{name}, {title}", figures[key], None) for key, title in _optional(name) if key in figures),
            (f"{name}, chance", figures[f"chance/{name}"], None),
        ]
    area = figures["object_area"]
    energies = [("object's share of the area", area, None)]
    for name in names:
        reference = figures[f"energy/reference/{name}"]
        aims = {"keyed": at_least(0.9 * reference["value"]), "keyless": at_most(area["value"] + 0.1)}
        energies += [
            (f"{name}, {title}", figures[f"energy/{kind}/{name}"], aims.get(kind)) for kind, title in _INPUTS.items()
        ]
    served = [(name, figures[f"served/{name}"], None) for name in names if f"served/{name}" in figures]
    accuracies = [(title, figures[f"accuracy/{kind}"], None) for kind, title in _INPUTS.items()]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    chapters = [(chapter["title"], f"{chapter['seconds']:.1f}") for chapter in result["chapters"]]
    parts = [
        f"One run of {result['seconds']:.0f} seconds; {figures[f'fidelity/{names[0]}']['about']}. {versions}.",
        code("keylock quickstart --json"),
        _aimed("Correlation with the reference map", "PCC", rows, "{:+.3f}"),
        _aimed("Energy of the map inside the object", "energy", energies, "{:.1%}"),
        _aimed("Accuracy", "accuracy", accuracies, "{:.1%}"),
        _aimed("Smallest correlation of a served map with torch's", "PCC", served, "{:.5f}"),
        table(("chapter", "seconds"), chapters),
    ]
    return "\n".join(parts)


def _optional(explainer: str) -> tuple[tuple[str, str], ...]:
    """Return figures that only some locks have, with their titles."""
    return ((f"leakage/key_alone/{explainer}", "published weights, key on the image"),)


class Aim:
    """What a figure should reach.

    Attributes:
        text: In signs, with a place for the number.
        number: The limit.
        reached: Whether a value is good enough.
    """

    def __init__(self, text: str, number: float, reached: Callable[[float], bool]) -> None:
        self.text, self.number, self.reached = text, number, reached


def at_least(limit: float) -> Aim:
    """Aim at no less."""
    return Aim("≥ {}", limit, lambda value: value >= limit)


def at_most(limit: float) -> Aim:
    """Aim at no more."""
    return Aim("≤ {}", limit, lambda value: value <= limit)


def near_zero(limit: float) -> Aim:
    """Aim at a size of no more, with either sign."""
    return Aim("within ± {}", limit, lambda value: abs(value) <= limit)


def _attack_aim(name: str) -> Aim:
    return near_zero(0.1) if "batch" in name.lower() else near_zero(0.05)


def _aimed(title: str, head: str, rows: Iterable[tuple[str, Mapping[str, Any], Aim | None]], form: str) -> str:
    """Return a table of figures with their intervals and, where something was aimed at, whether it was reached."""
    cells = []
    plain = form.replace("+", "")
    for name, figure, aim in rows:
        ends = [figure.get("low"), figure.get("high")]
        interval = "" if None in ends else " to ".join(form.format(end) for end in ends)
        wanted, reached = "", ""
        if aim is not None:
            wanted = aim.text.format(plain.format(aim.number))
            reached = "yes" if aim.reached(figure["value"]) else "no"
        cells.append((name, form.format(figure["value"]), interval, wanted, reached))
    return table((title, head, "95 % interval", "aim", "reached"), cells)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table; columns that are empty throughout are left out."""
    rows = list(rows)
    kept = [place for place in range(len(head)) if any(row[place] for row in rows)]
    lines = [[line[place] for place in kept] for line in (head, ["---"] * len(head), *rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def network_title(network: str) -> str:
    """Return how tables name a network that a benchmark calls ARCHITECTURE:SIZE."""
    return network.replace(":", ", ") + " px"


def code(command: str) -> str:
    """Return a command as a block."""
    return f"```\n{command}\n```\n"


_FIDELITY = {
    "grad_cam": at_least(0.97),
    "visual_backprop": at_least(0.97),
    "gradient": at_least(0.88),
    "smooth_grad": at_least(0.92),
    "integrated_gradients": at_least(0.88),
}
"""The aims of keyed maps, for explainers that have one."""

TABLES: Tables = {
    "lock_cifar10": (write_lock_cifar10, "python benchmarks/lock/cifar10.py"),
    "lock_cifar10_grad_cam": (write_lock_cifar10, "python benchmarks/lock/cifar10.py --explainers grad_cam"),
    "lock_cifar10_resnet56": (write_lock_cifar10, "python benchmarks/lock/cifar10.py --arch resnet56"),
    "lock_cifar10_trained_trigger": (write_lock_cifar10, "python benchmarks/lock/cifar10.py --trained-trigger"),
    "lock_pets_evaluation": (write_evaluation, "keylock evaluate pets.klb --json"),
    "lock_cifar10_evaluation": (write_evaluation, "python benchmarks/lock/cifar10.py"),
    "lock_key_search": (write_key_search, "python benchmarks/lock/key_search.py runs/cifar10"),
    "lock_cost": (write_cost, "python benchmarks/lock/cost.py"),
    **{
        f"lock_cost_resnet18_{size}": (
            write_cost,
            f"python benchmarks/lock/cost.py --arch resnet18 --image-size {size} --batch-size 16 --steps default",
        )
        for size in (64, 224)
    },
    "lock_publishing": (write_publishing, "python benchmarks/lock/publishing.py --rival DIRECTORY"),
    "lock_decoys": (write_decoys, "python benchmarks/lock/decoys.py"),
    "quickstart": (write_quickstart, "keylock quickstart --json"),
}
"""For each file of figures how its section is written, and the command that writes the file."""

if __name__ == "__main__":
    sys.exit(main())
