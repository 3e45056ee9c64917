"""How long `keylock train` takes from the end of the steps to the written bundle, beside an earlier build.

    python benchmarks/lock/publishing.py --rival ../keylock-before

The rival is a checkout of another commit, run by the same Python. Both lock the same networks in two steps, by turns;
what is timed begins with the line that ends the steps and ends with the command: it measures the lock, compiles and
verifies every graph, signs and writes.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
NETWORKS = ("small-cnn", "resnet20", "mobilenet_v2_cifar")
EXPLAINERS = "grad_cam,gradient,visual_backprop"
RESULTS = ROOT / "benchmarks" / "results" / "lock_publishing.json"


def main() -> None:
    """Time both builds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rival", type=Path, required=True, help="a checkout of an earlier commit")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    builds = {"this build": ROOT, "rival": options.rival.resolve()}
    figures: dict[str, Any] = {}
    for network in options.networks.split(","):
        taken: dict[str, list[float]] = {name: [] for name in builds}
        for _ in range(options.rounds):
            for name, checkout in builds.items():
                taken[name].append(publishing_time(checkout, network))
                print(f"{network}, {name}: {taken[name][-1]:.1f} s", flush=True)
        own, rival = (statistics.median(taken[name]) for name in builds)
        figures[network] = {"s": round(own, 1), "rival_s": round(rival, 1), "ratio": round(own / rival, 3)}
        print(f"{network}: {json.dumps(figures[network])}", flush=True)
        result = {
            "date": datetime.now(UTC).date().isoformat(),
            "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "torch": torch.__version__,
            "command": f"python benchmarks/lock/publishing.py --rival DIRECTORY --rounds {options.rounds}",
            "rival": commit_of(options.rival),
            "explainers": EXPLAINERS,
            "figures": figures,
        }
        options.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def publishing_time(checkout: Path, network: str) -> float:
    """Return the seconds between the end of the steps and that of the command."""
    sources = [str(checkout / part) for part in ("", "server", "client")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sources), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "import sys; from keylock.cli import main; sys.exit(main())"]
        command += ["train", "--arch", network, "--data", "shapes", "--explainers", EXPLAINERS, "--check-seconds", "0"]
        command += ["--steps", "2", "--reference-steps", "2", "--out", f"{folder}/a.klb", "--home", f"{folder}/home"]
        running = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert running.stderr is not None
        lines, began = [], None
        for line in running.stderr:
            lines.append(line)
            if line.strip().startswith("lock the explanations: "):
                began = time.monotonic()
        if running.wait() or began is None:
            sys.exit(f"{checkout} does not train {network}:\n{''.join(lines[-5:])}")
        return time.monotonic() - began


def commit_of(checkout: Path) -> str:
    """Return the commit of a checkout, shortened."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
