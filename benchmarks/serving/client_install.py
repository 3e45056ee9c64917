"""What `pip install keylock-client` brings: the size of every distribution, and how long `import keylock_client` takes.

    python benchmarks/serving/client_install.py

The wheel is built from this checkout and installed into an empty environment. Sizes are those of the files that each
distribution lists, compiled files left out. The time is the median of processes that import the client, less the median
of those that import nothing: processor time, so that other work on the machine weighs little, and time on the clock.
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

from processor import describe_processor

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "serving" / "client_install.json"
GIVEN = ("grpcio", "numpy", "pillow")
"""What a client of gRPC that shows pictures has anyway; the goal is for what comes beside it."""
GOAL_MB, GOAL_S = 60.0, 0.25
LIST = """
import importlib.metadata, json
def size(one):
    files = [file for file in one.files or () if file.suffix != ".pyc"]
    return sum(file.locate().stat().st_size for file in files if file.locate().is_file())
found = {one.metadata["Name"].lower(): size(one) for one in importlib.metadata.distributions()}
print(json.dumps(found))
"""


def main() -> None:
    """Build, install, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        python = install(wheel, Path(folder) / "empty")
        sizes = {name: size for name, size in sizes_in(python).items() if name not in ("pip", "setuptools")}
        times = {code: [seconds(python, code) for _ in range(options.rounds)] for code in ("", "import keylock_client")}
        wheel_bytes = wheel.stat().st_size
    beside = sum(size for name, size in sizes.items() if name not in GIVEN)
    took = {
        kind: statistics.median(times["import keylock_client"][n][kind] for n in range(options.rounds))
        - statistics.median(times[""][n][kind] for n in range(options.rounds))
        for kind in ("processor", "clock")
    }
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": describe_processor(),
        "python": platform.python_version(),
        "command": f"python benchmarks/serving/client_install.py --rounds {options.rounds}",
        "wheel_kb": round(wheel_bytes / 1000),
        "installed_mb": {name: round(size / 1e6, 2) for name, size in sorted(sizes.items(), key=lambda one: -one[1])},
        "mb_beside": {"without": list(GIVEN), "value": round(beside / 1e6, 1), "goal": GOAL_MB},
        "import_s": {**{kind: round(value, 3) for kind, value in took.items()}, "goal": GOAL_S},
    }
    options.results.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def build(folder: Path) -> Path:
    """Build the wheel of the client."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--quiet",
            "wheel",
            "--no-deps",
            "--wheel-dir",
            str(folder),
            str(ROOT / "client"),
        ],
        check=True,
    )
    [wheel] = folder.glob("keylock_client-*.whl")
    return wheel


def install(wheel: Path, place: Path) -> Path:
    """Install the wheel and what it needs into an empty environment; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python = place / "bin" / "python"
    subprocess.run(
        [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install", str(wheel)], check=True
    )
    return python


def sizes_in(python: Path) -> dict[str, int]:
    """Return the bytes of every distribution of an environment."""
    found: dict[str, int] = json.loads(subprocess.check_output([str(python), "-I", "-c", LIST], text=True))
    return found


def seconds(python: Path, code: str) -> dict[str, float]:
    """Run code in a process of its own; return what it took."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([str(python), "-I", "-c", code], check=True)
    after = os.times()
    return {
        "processor": after.children_user - before.children_user + after.children_system - before.children_system,
        "clock": time.perf_counter() - start,
    }


if __name__ == "__main__":
    main()
