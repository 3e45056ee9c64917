"""How long a server takes from its command to its first licensed answer, and how much memory, for builds in turns.

    git worktree add /tmp/before ed22290
    python benchmarks/serving/start.py --before /tmp/before

Every build serves the same bundle, a ResNet-18 at 224 pixels with Grad-CAM and the gradient, locked and with a store.
Ready is when the health is SERVING and a licensed Grad-CAM was answered; what counts is the time that passes and that
of the processor, of the server and all of its children. `auto, first` chooses among runtimes and numbers, `auto, again`
remembers what was chosen, where a build does. Memory is compared with that of a process that opens the graphs of the
bundle, with the opened weights, as sessions of ONNX Runtime, and runs each on one image, with no server around them.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from checkouts import commit_of, environment_of, make_home
from grpc_health.v1 import health_pb2, health_pb2_grpc
from material import Material, prepare
from processes import ServerProcess
from processor import describe_processor

from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc

_ROOT = Path(__file__).resolve().parents[2]
_RESULTS = _ROOT / "benchmarks" / "results" / "serving" / "start.json"
_SIDE = 224
_STEADY_CALLS = 4


def main() -> None:
    """Measure by turns, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of another build, to be compared with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/serving"))
    parser.add_argument("--results", type=Path, default=_RESULTS)
    options = parser.parse_args()
    material = prepare(options.work, _SIDE)
    builds = {} if options.before is None else {"before": options.before.resolve()}
    builds["after"] = _ROOT
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in builds}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        _compile(builds, material, Path(folder))
        for number in range(options.rounds):
            for name, tree in builds.items():
                for kind, figures in _round(tree, material, Path(folder)).items():
                    found[name].setdefault(kind, []).append(figures)
                    print(number, name, kind, json.dumps(figures), file=sys.stderr, flush=True)
        bare_mib = _bare_mib(material)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": f"{describe_processor()}, {os.cpu_count()} cores",
        "command": "python benchmarks/serving/start.py" + " --before CHECKOUT" * (options.before is not None),
        "commits": {name: commit_of(tree) for name, tree in builds.items()},
        "rounds": options.rounds,
        "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],
        "bare_mib": round(bare_mib, 1),
        "figures": {name: {kind: _summary(of) for kind, of in kinds.items()} for name, kinds in found.items()},
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def _round(tree: Path, material: Material, folder: Path) -> dict[str, dict[str, float]]:
    """Start a build three times: with the defaults, and twice where it chooses by itself."""
    home = folder / "home"
    shutil.rmtree(home, ignore_errors=True)
    token = make_home(material.home, home, tree)
    kinds = {"float32": "float32", "auto, first": "auto", "auto, again": "auto"}
    return {kind: asyncio.run(_start(tree, material, home, token, variant)) for kind, variant in kinds.items()}


async def _start(tree: Path, material: Material, home: Path, token: str, variant: str) -> dict[str, float]:
    ready_file, log = home / "ready", home / "log"
    ready_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "keylock", "serve", str(material.bundle), "--port", "0", "--device", "cpu"]
    command += ["--key-file", str(material.key_file), "--home", str(home), "--ready-file", str(ready_file)]
    environment = {**_path(tree, home.parent), "KEYLOCK_SERVER_VARIANT": variant}
    process = ServerProcess([*command, "--log-level", "error"], log, environment=environment)
    try:
        image = material.images()[0]
        tensor = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=image.shape, data=image.tobytes())
        request = pb.ExplainRequest(images=[pb.Image(tensor=tensor)], explainer="grad_cam")
        metadata = (("authorization", f"Bearer {token}"),)

        async def answers() -> bool:
            if not ready_file.exists() or not (target := ready_file.read_text("utf-8").strip()):
                return False
            async with grpc.aio.insecure_channel(target) as channel:
                health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
                if health.status != health_pb2.HealthCheckResponse.SERVING:
                    return False
                explain = explanation_pb2_grpc.ExplanationServiceStub(channel).Explain
                answer = await explain(request, metadata=metadata, timeout=60)
                return bool(answer.results[0].keyed)

        seconds = await process.ready(answers)
        figures = {"seconds": seconds, "cpu_s": process.cpu_s, "peak_mib": _status_mib(process, "VmHWM")}
        async with grpc.aio.insecure_channel(ready_file.read_text("utf-8").strip()) as channel:
            explain = explanation_pb2_grpc.ExplanationServiceStub(channel).Explain
            for name in ("grad_cam", "gradient"):
                request.explainer = name
                for _ in range(_STEADY_CALLS):
                    await explain(request, metadata=metadata, timeout=60)
        return {**figures, "steady_mib": process.rss_bytes / 2**20}
    finally:
        process.stop()


def _compile(builds: Mapping[str, Path], material: Material, folder: Path) -> None:
    """Start every build once, so that Python has compiled all of its files, as an installation has them."""
    for tree in builds.values():
        _round(tree, material, folder)


def _path(tree: Path, folder: Path) -> dict[str, str]:
    compiled = {"PYTHONPYCACHEPREFIX": str(folder / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}
    return {**environment_of(tree), **compiled}


def _bare_mib(material: Material) -> float:
    """Return the resident memory of a process with the sessions alone."""
    program = str(Path(__file__).with_name("loop.py"))
    command = [sys.executable, program, "onnxruntime", str(material.folder), str(material.side)]
    with tempfile.TemporaryDirectory() as folder:
        process = ServerProcess(command, Path(folder) / "log", pipes=True)
        try:
            asked, answered = process.popen.stdin, process.popen.stdout
            assert asked is not None
            assert answered is not None
            for task in ("predict", "grad_cam", "gradient"):
                asked.write(json.dumps([task, 1, False]).encode() + b"\n")
                asked.flush()
                if not answered.readline():
                    raise SystemExit(process.log.read_text("utf-8"))
            return process.rss_bytes / 2**20
        finally:
            process.stop()


def _status_mib(process: ServerProcess, name: str) -> float:
    lines = Path(f"/proc/{process.popen.pid}/status").read_text("ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def _summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    return {
        name: {"median": round(statistics.median(values), 2), "least": round(min(values), 2)}
        for name in rounds[0]
        for values in [[one[name] for one in rounds]]
    }


if __name__ == "__main__":
    main()
