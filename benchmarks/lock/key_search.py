"""Search a published model for a key, by gradient: tile-wise and of full size, with fresh images in every step.

    python benchmarks/lock/key_search.py runs/cifar10 --data cifar10.npz --reference cifar10_resnet20.npz

The searches are those of `keylock audit`, given more steps and images. The results go to
`benchmarks/results/lock_key_search.json`.
"""

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from keylock.audit import ATTACKS
from keylock.audit.budgets import budget_of
from keylock.audit.case_loader import open_case
from keylock.audit.contract import Steps
from keylock.audit.views import WeightsView
from keylock.bundle import KeyFile
from keylock.data import open_data
from keylock.evaluation import estimate_mean
from keylock.locking.losses import correlation
from keylock.training import Silent

KINDS = {"tile": "key_search/move_tile", "full size": "key_search/move_full"}
"""What is searched, and the audit's attack that does it: move the map, keep the label."""


def main() -> None:
    """Run the benchmark."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    spend = replace(budget_of("standard"), images=options.images, search_batch=options.batch_size, restarts=1)
    case, _ = open_case(
        options.bundle,
        open_data(options.data),
        secret=KeyFile(options.key_file or options.bundle.with_name(options.bundle.name + ".key")),
        budget=spend,
        reference=options.reference,
    )
    if options.explainers:
        case = replace(case, explainers={name: case.explainers[name] for name in options.explainers.split(",")})
    truths = case.truths()
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.threads} threads",
        "torch": torch.__version__,
        "about": case.about,
        "command": "python benchmarks/lock/key_search.py runs/cifar10 --data cifar10.npz"
        f" --reference {options.reference.name} --explainers {','.join(truths)}"
        f" --steps {' '.join(map(str, options.steps))} --batch-size {options.batch_size} --threads {options.threads}",
        "chance": {name: float(correlation(maps, maps.roll(1, dims=0)).mean()) for name, maps in truths.items()},
        "figures": {},
    }
    for steps in options.steps:
        for kind, name in KINDS.items():
            began = time.monotonic()
            outcome = ATTACKS[name].run(
                case.view(WeightsView),
                replace(spend, search_steps=steps),
                torch.Generator().manual_seed(0),
                Steps(name, Silent()),
            )
            right = None if outcome.predictions is None else float((outcome.predictions == case.labels).float().mean())
            result["figures"][f"{kind}, {steps} steps"] = {
                "pcc": {name: estimate_mean(correlation(outcome.maps[name], truths[name])) for name in truths},
                "accuracy": right,
                "seconds": round(time.monotonic() - began, 1),
            }
            print(f"{kind}, {steps} steps: {result['figures'][f'{kind}, {steps} steps']}", flush=True)
            options.results.write_text(json.dumps(result, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True, help="images of the model's kind, as for keylock evaluate")
    parser.add_argument("--reference", type=Path, required=True, help="weights of the reference model")
    parser.add_argument("--key-file", type=Path, help="what opens the sealed key. [BUNDLE.key]")
    parser.add_argument(
        "--explainers", help="search and measure by these alone; those with second derivatives are slow"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[150, 1000])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "lock_key_search.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
