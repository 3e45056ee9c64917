"""Audit a bundle with `keylock audit`, and keep what docs/threat-model.md shows of it.

    python benchmarks/lock/audit.py runs/cifar10 --data cifar10.npz --reference cifar10_resnet20.npz
    python benchmarks/lock/audit.py quickstart/shapes.klb --suite quick --results audit_quickstart.json

The whole report, with every figure, curve and picture, goes to `--out`. Of each attack the comparison that counts goes
to `benchmarks/results/audit_cifar10.json`, with the time of the whole run, date and hardware.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the benchmark."""
    options = _options()
    asked = ["--data", options.data, "--suite", options.suite]
    asked += [] if options.reference is None else ["--reference", str(options.reference)]
    began = time.monotonic()
    if any((options.out / "outcomes").glob("*.json")):
        sys.exit(f"{options.out} holds an audit already, which would go on: name another folder, or delete it")
    said = subprocess.run(
        [sys.executable, "-m", "keylock", "audit", str(options.bundle), *asked, "--out", str(options.out), "--json"],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    seconds = time.monotonic() - began
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "command": _command(options),
        "seconds": round(seconds, 1),
        **summarise(json.loads(said)),
    }
    options.results.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {options.results}; the report is in {options.out}")


def summarise(record: dict[str, Any]) -> dict[str, Any]:
    """Return of an audit's figures what the page shows: of each attack the comparison that counts."""
    kept = ("model", "model_digest", "lock", "suite", "seed", "about", "budget", "versions")
    return {**{name: record[name] for name in kept}, "attacks": [_attack(one) for one in record["judged"]]}


def _attack(judged: dict[str, Any]) -> dict[str, Any]:
    finding = judged["finding"]
    found = {name: finding[name] for name in ("attack", "group", "summary", "accuracy", "separation", "cost")}
    found |= {name: judged[name] for name in ("verdict", "limit", "own", "advantage")}
    found["checks"] = [check for check in finding["checks"] if check["good"] is False]
    if judged["worst"] is not None:
        found |= finding["recoveries"][judged["worst"]]
    return found


def _command(options: argparse.Namespace) -> str:
    """Return the command without the folders of this machine."""
    parts = ["python benchmarks/lock/audit.py", options.bundle.name, f"--data {Path(options.data).name}"]
    parts += [] if options.reference is None else [f"--reference {options.reference.name}"]
    return " ".join([*parts, f"--suite {options.suite}"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", default="shapes")
    parser.add_argument("--reference", type=Path, help="weights of the reference model, where the work folder has none")
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--out", type=Path, default=Path("runs/audit"), help="folder of the report")
    results = Path(__file__).parents[1] / "results" / "audit_cifar10.json"
    parser.add_argument("--results", type=Path, default=results)
    return parser.parse_args()


if __name__ == "__main__":
    main()
