"""What calls cost a server in processor time and in bytes, for several builds of keylock beside each other.

(cd /path/to/checkout && python -m keylock quickstart --quick --out /tmp/before)
python -m keylock quickstart --quick --out /tmp/after
python benchmarks/serving/before_after.py before=/path/to/checkout,/tmp/before after=.,/tmp/after

Every build serves the bundle that its own `keylock quickstart` has made, with a store of its own, since builds differ
in the bundles they read. Calls of each kind take turns in rounds, build after build, so that whatever else the machine
does concerns all of them; the server's processor time of a round is divided by its calls. Quartiles of the rounds tell
how far the figures can be trusted. Values of enumerations keep their numbers, so messages reach all builds.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from checkouts import commit_of, environment_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "licensing"))

from world import ROOT, record

from keylock.inference import inference_pb2, inference_pb2_grpc
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc

_RESULTS = ROOT / "benchmarks" / "results" / "serving"
_TICKS = os.sysconf("SC_CLK_TCK")


class Build:
    """A server of one build in a process of its own, and the calls to it."""

    def __init__(self, name: str, tree: Path, folder: Path, work: Path) -> None:
        """Starts it."""
        self.name, self.commit = name, commit_of(tree)
        home, ready, license_file = work / name, work / f"{name}.ready", work / f"{name}.license"
        # The keys alone: each build makes the store that it knows.
        shutil.copytree(folder / "home", home, ignore=shutil.ignore_patterns("licenses.db*"))
        environment = {**environment_of(tree), "OMP_NUM_THREADS": "1", "KEYLOCK_SERVER_THREADS": "1"}
        keylock = [sys.executable, "-m", "keylock"]
        grant = ["license", "issue", "--customer", "Cost", "--model", "*", "--home", home, "--out", license_file]
        subprocess.run([*keylock, *grant], check=True, capture_output=True, env=environment, cwd=work)
        lines = license_file.read_text("utf-8").splitlines()
        self.token = "".join(line for line in lines if line and not line.startswith("-----"))
        bundle = folder / "shapes.klb"
        serve = ["serve", bundle, "--key-file", f"{bundle}.key", "--home", home, "--port", "0", "--ready-file", ready]
        with (work / f"{name}.log").open("wb") as log:
            self.process = subprocess.Popen([*keylock, *serve], stdout=log, stderr=log, env=environment, cwd=work)
        while not ready.exists():
            if self.process.poll() is not None:
                raise SystemExit((work / f"{name}.log").read_text("utf-8"))
            time.sleep(0.05)
        self.channel = grpc.insecure_channel(ready.read_text("utf-8").strip())
        self.explain = explanation_pb2_grpc.ExplanationServiceStub(self.channel).Explain
        self.infer = inference_pb2_grpc.GRPCInferenceServiceStub(self.channel).ModelInfer

    @property
    def cpu_s(self) -> float:
        """Seconds of processor time it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def close(self) -> None:
        """Ends it."""
        self.channel.close()
        self.process.terminate()
        self.process.wait(60)


def _kinds(image: bytes) -> dict[str, Callable[[Build], Any]]:
    def explain(build: Build, *, licensed: bool, prediction: int) -> Any:  # noqa: ANN401 - a message
        metadata = [("authorization", f"Bearer {build.token}")] if licensed else []
        request = pb.ExplainRequest(images=[pb.Image(encoded=image)], explainer="grad_cam", prediction=prediction)
        return build.explain(request, metadata=metadata, timeout=60)

    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="encoded", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(image)
    infer = inference_pb2.ModelInferRequest(model_name="shapes", inputs=[tensor])
    public, keyed = pb.PREDICTION_KIND_PUBLIC, pb.PREDICTION_KIND_KEYED
    return {
        "predict": lambda build: build.infer(infer, timeout=60),
        "explain without a license": lambda build: explain(build, licensed=False, prediction=public),
        "explain with a license": lambda build: explain(build, licensed=True, prediction=public),
        "explain with a license, prediction=keyed": lambda build: explain(build, licensed=True, prediction=keyed),
    }


def measure(builds: list[Build], image: bytes, *, rounds: int, calls: int) -> dict[str, Any]:
    """Times every kind of call on every build, and takes the sizes of answers."""
    kinds = _kinds(image)
    times: dict[str, dict[str, list[float]]] = {kind: {build.name: [] for build in builds} for kind in kinds}
    sizes: dict[str, dict[str, int]] = {kind: {} for kind in kinds}
    for number in range(rounds + 1):
        for kind, call in kinds.items():
            for build in builds if number % 2 else reversed(builds):
                began = build.cpu_s
                for _ in range(calls):
                    answer = call(build)
                sizes[kind][build.name] = answer.ByteSize()
                if number:  # The first round warms up.
                    times[kind][build.name].append((build.cpu_s - began) / calls * 1000)
    return {
        kind: {
            build.name: {
                "cpu_ms": round(statistics.median(of), 3),
                "quartiles_ms": [round(one, 3) for one in statistics.quantiles(of, n=4)[::2]],
                "answer_bytes": sizes[kind][build.name],
            }
            for build in builds
            for of in [times[kind][build.name]]
        }
        for kind in kinds
    }


def main() -> None:
    """Measures and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="+", metavar="NAME=CHECKOUT,QUICKSTART")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=50, help="calls of one kind in a round")
    options = parser.parse_args()
    named = [(name, *rest.partition(",")[::2]) for name, _, rest in (one.partition("=") for one in options.builds)]
    image = sorted((Path(named[0][2]) / "images").glob("*.png"))[0].read_bytes()
    builds: list[Build] = []
    with tempfile.TemporaryDirectory() as work:
        try:
            for name, tree, folder in named:
                builds.append(Build(name, Path(tree).resolve(), Path(folder).resolve(), Path(work)))
            found = measure(builds, image, rounds=options.rounds, calls=options.calls)
        finally:
            for build in builds:
                build.close()
    commits = {build.name: build.commit for build in builds}
    settings = {"rounds": options.rounds, "calls": options.calls, "builds": commits}
    record("before_after", {**settings, "kinds": found}, folder=_RESULTS)


if __name__ == "__main__":
    main()
