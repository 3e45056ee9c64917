"""What attackers recover from predictions with the query guard, and how that grows with its budgets.

    python benchmarks/guard/recover.py shapes.klb --data shapes

Attackers ask the published classifier of a bundle through a guard in this process; what is refused gives them nothing.
Their maps are held against those of the reference model: the same methods' and Grad-CAM's. The results go to
`benchmarks/results/guard.json`.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attackers import DISGUISES, MASKS, averaged_map, fitted_map
from numpy.typing import NDArray

from keylock.audit.budgets import budget_of
from keylock.audit.case import Case
from keylock.audit.case_loader import open_case
from keylock.audit.oracle import METHODS
from keylock.audit.scoring import similarity_to
from keylock.bundle import KeyFile, open_bundle
from keylock.data import open_data
from keylock.explainers import make
from keylock_server.guard import Guard, GuardLimits

Maps = dict[str, torch.Tensor]

_BUDGETS = ((0, 0), (2, 6), (4, 12), (8, 24), (16, 64), (10_000, 10_000))
"""Scores and labels of a picture; the last stands for no guard."""

_MEMORY_BYTES = 2**19
_TRUTH_MASKS = 300


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """How copies are made and asked for.

    Attributes:
        masks: A name in `MASKS`.
        disguise: A name in `DISGUISES`, or none.
        labels_only: Whether scores are not even asked for; otherwise labels are, where scores are refused.
        batch: Copies in a call.
        windows: Over how many windows the copies are spread.
        flood: Unrelated pictures sent before each copy.
    """

    masks: str
    disguise: str | None = None
    labels_only: bool = False
    batch: int = 1
    windows: int = 1
    flood: int = 0


PLAIN = {
    f"{masks}, {kind}": Attacker(masks=masks, labels_only=kind == "labels")
    for masks in ("occlusion", "rise", "lime", "kernel_shap", "signs")
    for kind in ("scores", "labels")
}
ADAPTIVE = {
    **{disguise: Attacker(masks="occlusion", disguise=disguise) for disguise in DISGUISES},
    "rise with noise": Attacker(masks="rise", disguise="noise"),
    "few large patches": Attacker(masks="halves"),
    "pieces that have nothing in common": Attacker(masks="pieces"),
    "batches": Attacker(masks="occlusion", batch=8),
    "labels of darker and lighter copies": Attacker(masks="occlusion", disguise="exposure", labels_only=True),
    "waiting for four windows": Attacker(masks="occlusion", windows=4),
    "unrelated pictures to fill the memory": Attacker(masks="occlusion", flood=4),
}


class World:
    """A classifier to ask, pictures to explain, and their true maps."""

    def __init__(self, options: argparse.Namespace) -> None:
        spend = replace(budget_of("quick"), images=options.images, own_images=400)
        secret = KeyFile(options.key_file or options.bundle.with_name(options.bundle.name + ".key"))
        self.case, pixels = open_case(options.bundle, open_data(options.data), secret=secret, budget=spend)
        with open_bundle(options.bundle, trusted=None) as bundle:
            preprocessing = bundle.manifest.preprocessing
        self._mean, self._std = (np.asarray(each, np.float32) for each in (preprocessing.mean, preprocessing.std))
        self.pictures = pixels.astype(np.float32) / 255
        self.others = self.case.own_images.permute(0, 2, 3, 1).numpy() * self._std + self._mean
        self.fill = self._mean
        self.truths = _truths(self.case)

    def ask(self, pictures: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return probabilities (count, classes)."""
        with torch.no_grad():
            images = torch.from_numpy((pictures - self._mean) / self._std).permute(0, 3, 1, 2)
            return torch.softmax(self.case.module(images).double(), dim=1).numpy()


def _truths(case: Case) -> Maps:
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
    chance = {name: float(similarity_to(maps.roll(1, dims=0), maps)[0].mean()) for name, maps in world.truths.items()}
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, shared with other programs",
        "torch": torch.__version__,
        "about": f"{world.case.about}, {options.queries} queries for each",
        "command": f"python benchmarks/guard/recover.py {options.bundle.name} --data {options.data}"
        f" --images {options.images} --queries {options.queries} --seed {options.seed}",
        "limits": {"scores": GuardLimits().scores, "labels": GuardLimits().labels},
        "chance": chance,
        "plain": {},
        "adaptive": {},
        "curve": {},
    }

    def measured(attacker: Attacker, limits: GuardLimits) -> dict[str, Any]:
        return _measure(world, attacker, limits, chance, options)

    default = GuardLimits(memory_bytes=_MEMORY_BYTES)
    for kind, attackers in (("plain", PLAIN), ("adaptive", ADAPTIVE)):
        for name, attacker in attackers.items():
            result[kind][name] = measured(attacker, default)
            print(name, result[kind][name], flush=True)
            options.results.write_text(json.dumps(result, indent=2) + "\n")
    for scores, labels in _BUDGETS:
        limits = replace(default, scores=scores, labels=labels)
        for name in ("occlusion, scores", "occlusion, labels"):
            result["curve"][f"{scores} scores, {labels} labels: {name}"] = measured(PLAIN[name], limits)
        options.results.write_text(json.dumps(result, indent=2) + "\n")


def _measure(
    world: World, attacker: Attacker, limits: GuardLimits, chance: dict[str, float], options: argparse.Namespace
) -> dict[str, Any]:
    """Attack every picture, and return the map that comes closest to a truth, of all truths and both kinds of maps."""
    generator = np.random.default_rng(options.seed)
    maps: dict[str, list[NDArray[np.float64]]] = {"fitted": [], "averaged": []}
    answered = []
    for picture in world.pictures:
        masks, answers = _attack(world, attacker, limits, picture, options.queries, generator)
        maps["fitted"].append(fitted_map(masks, answers))
        maps["averaged"].append(averaged_map(masks, answers))
        answered.append(int(np.isfinite(answers).sum()))
    found = []
    for how, rows in maps.items():
        recovered = torch.from_numpy(np.stack(rows)).float()
        for name, truth in world.truths.items():
            pcc = float(similarity_to(recovered, truth)[0].mean())
            found.append({"pcc": round(pcc, 3), "truth": name, "chance": round(chance[name], 3), "map": how})
    worst = max(found, key=lambda one: one["pcc"] - one["chance"])
    return {**worst, "answered": round(float(np.mean(answered)), 1)}


def _attack(
    world: World,
    attacker: Attacker,
    limits: GuardLimits,
    picture: NDArray[np.float32],
    queries: int,
    generator: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Ask about copies of a picture.

    Returns:
        The masks (copies, height, width), and the probability of the picture's class, 0 or 1 where the label alone was
        answered, and nan where nothing was (copies,).
    """
    now = 0.0
    guard = Guard(limits, lambda: now, generator)
    masks = MASKS[attacker.masks](queries, len(picture), generator)
    copies = _copies(masks, picture, world.fill, attacker, generator)
    probabilities = world.ask(copies)
    label = int(world.ask(picture[None]).argmax())
    answers = np.full(len(copies), np.nan)
    for rows in _calls(len(copies), attacker.batch):
        now = limits.window_s * (rows[0] * attacker.windows // len(copies))
        if attacker.flood:
            guard.admit(world.others[generator.permutation(len(world.others))[: attacker.flood]], labels_only=False)
        if not attacker.labels_only and guard.admit(copies[rows], labels_only=False).admitted:
            answers[rows] = probabilities[rows, label]
        elif guard.admit(copies[rows], labels_only=True).admitted:
            answers[rows] = probabilities[rows].argmax(axis=1) == label
    return masks, answers


def _copies(
    masks: NDArray[np.float32],
    picture: NDArray[np.float32],
    fill: NDArray[np.float32],
    attacker: Attacker,
    generator: np.random.Generator,
) -> NDArray[np.float32]:
    if attacker.masks == "signs":
        changed = picture + (2 * masks[..., None] - 1) * np.float32(8 / 255)
    else:
        changed = fill + masks[..., None] * (picture - fill)
    if attacker.disguise is not None:
        changed = DISGUISES[attacker.disguise](changed, generator)
    return np.clip(changed, 0, 1).astype(np.float32)


def _calls(count: int, batch: int) -> Iterable[list[int]]:
    for start in range(0, count, batch):
        yield list(range(start, min(start + batch, count)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True, help="images of the model's kind, as for keylock evaluate")
    parser.add_argument("--key-file", type=Path, help="what opens the sealed key. [BUNDLE.key]")
    parser.add_argument("--images", type=int, default=16, help="pictures to explain")
    parser.add_argument("--queries", type=int, default=100, help="copies of each that are asked about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "guard.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
