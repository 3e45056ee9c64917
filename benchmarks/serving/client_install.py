"""What `pip install keylock-client` brings: the size of every distribution, and how long a client takes to start.

    python benchmarks/serving/client_install.py [--before /path/to/checkout]

The wheel is built from this checkout and installed into an empty environment. Sizes are those of the files that each
distribution lists, compiled files left out. Times are of the lines that a program begins with, one after the other in
one process, until its first explanation is there: medians of processes, of processor time, so that other work on the
machine weighs little, and of time on the clock. What answers is a server of this process that computes nothing. The
floor is what gRPC, NumPy and Pillow take by themselves for the first of these lines. `--before` installs the wheel of
another checkout beside it, and the processes of the two take turns.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from PIL import Image
from processor import describe_processor

from keylock.v1 import explanation_pb2 as pb

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "serving" / "client_install.json"
GIVEN = ("grpcio", "numpy", "pillow")
"""What a client of gRPC that shows pictures has anyway; the goal is for what comes beside it."""
GOAL_MB, GOAL_S = 60.0, 0.25
STEPS = {
    "import": "import keylock_client",
    "name": "from keylock_client import Client",
    "client": "client = Client(TARGET)",
    "explanation": "client.explain(IMAGE)",
}
FLOOR = {"import": "import grpc, numpy, PIL.Image", "client": "channel = grpc.insecure_channel(TARGET)"}
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
    parser.add_argument("--before", type=Path, help="checkout to compare with")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, answering() as target:
        folder = Path(name)
        wheel = build(ROOT, folder / "wheel")
        python = install(wheel, folder / "empty")
        sizes = {name: size for name, size in sizes_in(python).items() if name not in ("pip", "setuptools")}
        image = folder / "image.png"
        Image.new("RGB", (8, 8)).save(image)
        measured = {"now": (python, STEPS), "floor": (python, FLOOR)}
        if options.before is not None:
            other = install(build(options.before.resolve(), folder / "before-wheel"), folder / "before")
            measured["before"] = (other, STEPS)
        # Once without a look, so that everything is compiled and read from the disk.
        rounds = [
            {name: seconds(*how, target=target, image=image) for name, how in measured.items()}
            for _ in range(options.rounds + 1)
        ][1:]
        wheel_bytes = wheel.stat().st_size
    beside = sum(size for name, size in sizes.items() if name not in GIVEN)
    took = {name: medians([one[name] for one in rounds]) for name in measured}
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": describe_processor(),
        "python": platform.python_version(),
        "command": f"python benchmarks/serving/client_install.py --rounds {options.rounds}"
        + ("" if options.before is None else " --before BEFORE"),
        "wheel_kb": round(wheel_bytes / 1000),
        "installed_mb": {name: round(size / 1e6, 2) for name, size in sorted(sizes.items(), key=lambda one: -one[1])},
        "mb_beside": {"without": list(GIVEN), "value": round(beside / 1e6, 1), "goal": GOAL_MB},
        "lines": STEPS,
        "took_s": took,
        **({} if options.before is None else {"before": revision(options.before)}),
        "import_goal_s": GOAL_S,
    }
    options.results.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


@contextmanager
def answering() -> Iterator[str]:
    """Serve canned answers; yields the address."""
    served = {
        "GetModel": (pb.GetModelRequest, _describe),
        "Explain": (pb.ExplainRequest, _explain),
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            lambda request, _, make=make: make(request), kind.FromString, lambda answer: answer.SerializeToString()
        )
        for name, (kind, make) in served.items()
    }
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("keylock.v1.ExplanationService", handlers),))
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(None).wait()


MODEL = pb.Model(name="shapes", digest="sha256:" + 64 * "0")


def _describe(_: pb.GetModelRequest) -> pb.GetModelResponse:
    scaling = pb.Preprocessing(height=8, width=8, channels=3, resize="exact", mean=[0.5] * 3, std=[0.25] * 3)
    return pb.GetModelResponse(
        model=MODEL, classes=["circle", "star"], preprocessing=scaling, explainers=[pb.Explainer(name="grad_cam")]
    )


def _explain(request: pb.ExplainRequest) -> pb.ExplainResponse:
    values = np.ones((8, 8), "<f4").tobytes()
    one = pb.Explanation(
        prediction=pb.Prediction(index=1, label="star", probability=0.75, logits=[0, 1]),
        map=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[8, 8], data=values),
        explainer=pb.Explainer(name="grad_cam"),
        target=pb.ClassScore(index=1, label="star", probability=0.75),
    )
    return pb.ExplainResponse(request_id=request.request_id, model=MODEL, results=[one])


def build(checkout: Path, folder: Path) -> Path:
    """Build the wheel of the client of a checkout."""
    line = ["-m", "pip", "--quiet", "wheel", "--no-deps", "--wheel-dir", str(folder), str(checkout / "client")]
    subprocess.run([sys.executable, *line], check=True)
    [wheel] = folder.glob("keylock_client-*.whl")
    return wheel


def revision(checkout: Path) -> str:
    """Return the commit of a checkout."""
    line = ["git", "-C", str(checkout), "rev-parse", "--short=7", "HEAD"]
    return subprocess.check_output(line, text=True).strip()


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


def seconds(python: Path, lines: dict[str, str], *, target: str, image: Path) -> dict[str, dict[str, float]]:
    """Run lines in a process of their own; return what each took, by kinds of time."""
    program = f"import json, time\nTARGET, IMAGE = {target!r}, {str(image)!r}\n"
    program += "times = [(time.process_time(), time.perf_counter())]\n"
    program += "".join(f"{line}\ntimes.append((time.process_time(), time.perf_counter()))\n" for line in lines.values())
    program += "print(json.dumps(times))"
    times = json.loads(subprocess.check_output([str(python), "-I", "-c", program], text=True))
    return {
        kind: {name: times[n + 1][place] - times[n][place] for n, name in enumerate(lines)}
        for place, kind in enumerate(("processor", "clock"))
    }


def medians(runs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return the median of each line, and of their sums up to a client and up to all of them."""
    found: dict[str, Any] = {}
    for kind in ("processor", "clock"):
        rows = [run[kind] for run in runs]
        until = [{name: took for name, took in row.items() if name != "explanation"} for row in rows]
        found[kind] = {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}
        found[kind]["until_client"] = round(statistics.median(sum(row.values()) for row in until), 3)
        if "explanation" in rows[0]:
            found[kind]["all"] = round(statistics.median(sum(row.values()) for row in rows), 3)
    return found


if __name__ == "__main__":
    main()
