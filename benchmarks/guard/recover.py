"""What attackers recover from predictions with the query guard, and how that grows with its budgets.

    python benchmarks/guard/recover.py shapes.klb --data shapes
    python benchmarks/guard/recover.py runs/cifar10 --data cifar10.npz --reference cifar10_resnet20.npz
    python benchmarks/guard/recover.py shapes.klb --data shapes --server --images 8 --copies 100

Attackers ask the published classifier of a bundle through a guard in this process, or with `--server` through the SDK a
server that is started for each of them; what is refused gives them nothing. Their maps are held against those of the
reference model: the same methods' and Grad-CAM's. The results go to `benchmarks/results/guard.json`,
`guard_cifar10.json` or `guard_server.json`; `python benchmarks/render_guard.py` writes them into the page.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import Truths, recovered_by
from served import serving

from keylock.audit.budgets import budget_of
from keylock.audit.case import Case
from keylock.audit.case_loader import open_case
from keylock.audit.copies import ADAPTIVE, ATTACKERS, PLAIN, Attacker, Copied, Pixels, ask_about
from keylock.audit.guarded import Guarded
from keylock.audit.oracle import METHODS, LocalOracle, Oracle, ServerOracle
from keylock.bundle import KeyFile
from keylock.data import open_data
from keylock.explainers import make
from keylock_client import Client
from keylock_server.guard import GuardLimits

_DEFAULT = GuardLimits()
_BUDGETS = {
    "scores": sorted({0, 1, 2, 4, 8, 16, 32, _DEFAULT.scores}),
    "labels": sorted({0, 4, 8, 16, 64, 128, _DEFAULT.labels}),
}
"""What a guard allows of the near copies of a picture: how many scores, or labels, counted as the guard counts them."""

_MANY = 100_000

_CURVE_COPIES = 100
"""Copies of a picture that are asked about for the curves, at most."""

_TRUTH_MASKS = 300
_PATIENCE = 40
_SMALL_MEMORY_BYTES = 2**19
"""For the attacker who fills the memory: at the size it is by default that takes more pictures than are at hand."""

_METHODS = ("occlusion", "rise", "lime", "kernel_shap")
_PIECEMEAL = {name for name, one in ATTACKERS.items() if not one.learns and one.windows == 1}
"""Attackers whose first copies are those that they would have sent had they wanted fewer."""


class World:
    """A classifier to ask, pictures to explain, and their true maps."""

    def __init__(self, options: argparse.Namespace) -> None:
        spend = replace(budget_of("quick"), images=options.images, own_images=400)
        secret = KeyFile(options.key_file or options.bundle.with_name(options.bundle.name + ".key"))
        data = open_data(options.data)
        self.case, _ = open_case(
            options.bundle, data, secret=secret, budget=spend, reference=options.reference, seed=options.seed
        )
        if options.ask_reference:
            self.case = self.case.as_reference()
        self.options = options
        self.pixels = Pixels(self.case.preprocessing)
        self.others = self.pixels.pictures(self.case.own_images)
        self.truths = Truths(_truths(self.case))

    @contextmanager
    def asked(self, limits: GuardLimits | None) -> Iterator[Oracle]:
        """Yield who answers: behind a guard that has seen nothing yet; None stands for no guard."""
        local = LocalOracle(self.case.module, self.case.explainers)
        if limits is None:
            yield local
        elif not self.options.server:
            yield Guarded(local, self.case.preprocessing, limits)
        else:
            with serving(self.options.bundle) as target, Client(target) as client:
                yield ServerOracle(client, lambda: Client(target))

    def attacked(self, attacker: Attacker, copies: int, limits: GuardLimits | None) -> list[Copied]:
        """Return what an attacker is answered about every picture."""
        with self.asked(limits) as oracle:
            return ask_about(
                oracle,
                self.case.images,
                attacker,
                copies=copies,
                others=self.others,
                pixels=self.pixels,
                generator=np.random.default_rng(self.options.seed),
                patience=_PATIENCE,
            )

    def figures(self, copied: Sequence[Copied]) -> dict[str, Any]:
        """Return what came of it."""
        return recovered_by(copied, self.truths, np.random.default_rng(self.options.seed))


def _truths(case: Case) -> dict[str, torch.Tensor]:
    truths = {"grad_cam": case.truths()["grad_cam"]}
    for name in METHODS:
        settings = {key: _TRUTH_MASKS for key in ("masks", "samples") if key in make(name).parameters}
        whatever = torch.full((len(case.images),), -1)
        truths[name] = make(name, **settings).explain(case.reference, case.images, whatever).maps
    return truths


def main() -> None:
    """Run the benchmark."""
    options = _options()
    torch.set_num_threads(1)
    world = World(options)
    began = time.process_time()
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, shared with other programs",
        "torch": torch.__version__,
        "about": _about(world),
        "command": _command(options),
        "limits": {"scores": _DEFAULT.scores, "labels": _DEFAULT.labels},
        "plain": {},
        "adaptive": {},
        "unguarded": {},
        "curve": {"scores": {}, "labels": {}},
    }

    def keep(place: dict[str, Any], name: str, found: dict[str, Any]) -> None:
        place[name] = found
        result["cpu_minutes"] = round((time.process_time() - began) / 60, 1)
        options.results.write_text(json.dumps(result, indent=1) + "\n")
        print(name, found, flush=True)

    for kind, attackers in (("plain", PLAIN), ("adaptive", ADAPTIVE)):
        for name in attackers:
            if _is_asked(name, options):
                keep(result[kind], name, _guarded(world, name))
    if options.server:
        return
    for name in _METHODS:
        for attacker in (name, f"{name}_labels"):
            if _is_asked(attacker, options):
                copied = world.attacked(ATTACKERS[attacker], max(options.copies), None)
                keep(result["unguarded"], attacker, world.figures(copied))
    if options.curve:
        for kind, curve in result["curve"].items():
            for name in _METHODS:
                keep(curve, name, _curve(world, name, kind))


def _guarded(world: World, name: str) -> dict[str, Any]:
    """Return the figures of an attacker by how many copies were sent."""
    limits = GuardLimits(memory_bytes=_SMALL_MEMORY_BYTES) if ATTACKERS[name].flood else _DEFAULT
    wanted = world.options.copies
    if name not in _PIECEMEAL:
        return {str(copies): world.figures(world.attacked(ATTACKERS[name], copies, limits)) for copies in wanted}
    copied = world.attacked(ATTACKERS[name], max(wanted), limits)
    return {str(copies): world.figures([one.first(copies) for one in copied]) for copies in wanted}


def _curve(world: World, name: str, kind: str) -> dict[str, Any]:
    """Return the figures of a method by how many near copies are answered, all with scores or all with labels."""
    with_scores = kind == "scores"
    attacker = replace(ATTACKERS[name], labels=False) if with_scores else ATTACKERS[f"{name}_labels"]
    copies, found = min(_CURVE_COPIES, max(world.options.copies)), {}
    for budget in _BUDGETS[kind]:
        limits = GuardLimits(scores=budget, labels=_MANY) if with_scores else GuardLimits(scores=0, labels=budget)
        found[str(budget)] = world.figures(world.attacked(attacker, copies, limits))
    return {**found, "no guard": world.figures(world.attacked(attacker, copies, None))}


def _is_asked(name: str, options: argparse.Namespace) -> bool:
    if options.only and name not in options.only:
        return False
    # A server's windows take an hour, and its memory holds more pictures than are at hand.
    attacker = ATTACKERS[name]
    return not options.server or (attacker.windows == 1 and not attacker.flood)


def _about(world: World) -> str:
    asked = "the reference network, in place of the published one, " if world.options.ask_reference else ""
    through = "a real server" if world.options.server else "a guard in this process"
    return f"{world.case.about}, {asked}asked through {through}"


def _command(options: argparse.Namespace) -> str:
    """Return the command without the folders of this machine."""
    parts = ["python benchmarks/guard/recover.py", options.bundle.name, f"--data {Path(options.data).name}"]
    parts += [] if options.reference is None else [f"--reference {options.reference.name}"]
    parts += ["--ask-reference"] if options.ask_reference else []
    parts += ["--server"] if options.server else []
    parts += [f"--only {','.join(options.only)}"] if options.only else []
    parts += [] if options.curve or options.server else ["--no-curve"]
    copies = ",".join(map(str, options.copies))
    return " ".join([*parts, f"--images {options.images} --copies {copies} --seed {options.seed}"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True, help="images of the model's kind, as for keylock evaluate")
    parser.add_argument("--key-file", type=Path, help="what opens the sealed key. [BUNDLE.key]")
    parser.add_argument("--reference", type=Path, help="weights of the reference model, where the work folder has none")
    parser.add_argument("--ask-reference", action="store_true", help="ask the reference network, not the published one")
    parser.add_argument("--server", action="store_true", help="ask a real server, started for each attacker")
    parser.add_argument("--images", type=int, default=24, help="pictures to explain")
    parser.add_argument("--copies", type=_numbers, default=(49, 100, 400), help="copies of each that are asked about")
    parser.add_argument("--only", type=_names, default=(), help="attackers to run alone")
    parser.add_argument("--no-curve", dest="curve", action="store_false", help="leave out the curves over budgets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="file of the figures. [benchmarks/results/guard....json]")
    options = parser.parse_args()
    if options.server and options.ask_reference:
        parser.error("a server serves the published network: leave out --ask-reference")
    if options.results is None:
        name = "guard_server" if options.server else "guard" if options.data == "shapes" else "guard_cifar10"
        options.results = Path(__file__).parents[1] / "results" / f"{name}.json"
    return options


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(part) for part in text.split(",")))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    main()
