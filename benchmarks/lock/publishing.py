"""What `keylock train` takes from the end of the steps to the written bundle, beside an earlier build.

    python benchmarks/lock/publishing.py --rival ../keylock-before

The rival is a checkout of another commit, run by the same Python. Both lock the same networks in two steps, by turns.
What is counted is processor time on one thread, so that other work on the machine weighs little. It begins with the
line that ends the steps and ends with the command: the lock is measured, then every graph is compiled and verified,
signed and written. The latter is also counted alone. Linux only.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).parents[2]
NETWORKS = ("small-cnn", "resnet20", "mobilenet_v2_cifar")
EXPLAINERS = "grad_cam,gradient,visual_backprop"
RESULTS = ROOT / "benchmarks" / "results" / "lock_publishing.json"
PROGRAM = """
import sys, keylock.cli
assert keylock.__file__.startswith(sys.argv.pop(1) + "/"), keylock.__file__
sys.exit(keylock.cli.main())
"""


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
        taken: dict[str, list[Times]] = {name: [] for name in builds}
        for _ in range(options.rounds):
            for name, checkout in builds.items():
                taken[name].append(publishing_times(checkout, network))
                print(f"{network}, {name}: {taken[name][-1]}", flush=True)
        figures[network] = {part: compared(*(taken[name] for name in builds), part) for part in Times._fields}
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


class Times(NamedTuple):
    """Seconds of processor time.

    Attributes:
        whole: From the end of the steps to that of the command.
        graphs: Of that, from the first compilation on.
    """

    whole: float
    graphs: float


def compared(own: Sequence[Times], rival: Sequence[Times], part: str) -> dict[str, float]:
    """Return the medians of one part of both builds, and their ratio."""
    s, rival_s = (statistics.median(getattr(times, part) for times in taken) for taken in (own, rival))
    return {"s": round(s, 1), "rival_s": round(rival_s, 1), "ratio": round(s / rival_s, 3)}


def publishing_times(checkout: Path, network: str) -> Times:
    """Train a network in two steps, and time what follows."""
    sources = [str(checkout / part) for part in ("", "server", "client")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sources), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        # The working folder comes before every other place that modules are imported from.
        command = [sys.executable, "-P", "-c", PROGRAM, str(checkout)]
        command += ["train", "--arch", network, "--data", "shapes", "--explainers", EXPLAINERS, "--check-seconds", "0"]
        command += ["--steps", "2", "--reference-steps", "2", "--out", f"{folder}/a.klb", "--home", f"{folder}/home"]
        running = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert running.stderr is not None
        lines, began, compiling = [], None, None
        for line in running.stderr:
            lines.append(line)
            if line.strip().startswith("lock the explanations: "):
                began = processor_time(running.pid)
            elif line.startswith("compile, sign and write"):
                compiling = processor_time(running.pid)
        _, status, used = os.wait4(running.pid, 0)
        if status or began is None or compiling is None:
            sys.exit(f"{checkout} does not train {network}:\n{''.join(lines[-5:])}")
        ended = used.ru_utime + used.ru_stime
        return Times(round(ended - began, 1), round(ended - compiling, 1))


def processor_time(process: int) -> float:
    """Return the seconds of processor time that a process has used so far."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def commit_of(checkout: Path) -> str:
    """Return the commit of a checkout, shortened."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
