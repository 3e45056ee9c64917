"""What a licensed Grad-CAM call costs a server beside the graph, for builds of keylock next to each other.

    python benchmarks/serving/call_cost.py before=/path/to/checkout after=.

Every build serves the same bundle, with receipts, a SQLite store of its own, and the settings that a server has by
default, on one thread. Images of 224 pixels come as float32 tensors, as pixels and as JPEG files, from 1, 8 and 32
callers with a connection each, who ask again as soon as they are answered. Processor time is that of the server's
processes; callers are no part of it. From that of a call is taken what a bare session takes for an image, in batches as
large as the server's runs were. Builds and bare session take turns in rounds, so that whatever else the machine does
concerns all of them.

Beside them stands `gRPC alone`: a server of grpc.aio that parses the same requests and sends an answer of one of the
builds, whatever it is asked. No server that is written with grpc.aio costs less.

The thin network costs next to nothing, so little of its figures depends on the bare session. Beside ResNet-18 a call
finds the caches of the processor full of weights.
"""

import argparse
import asyncio
import io
import os
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import PIL.Image
from checkouts import commit_of, environment_of, make_home
from material import Material, prepare
from numpy.typing import NDArray
from processes import ServerProcess, free_port
from processor import describe_processor
from rivals.bare import BareOnnx
from rivals.channels import Channels

sys.path.append(str(Path(__file__).resolve().parents[1] / "licensing"))

from world import ROOT, record

from keylock.bundle import open_bundle
from keylock.crypto.signing import Home
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc

_RESULTS = ROOT / "benchmarks" / "results" / "serving"
_SIDE = 224
_TASK = "grad_cam"
_QUALITY = 90
_ROWS = re.compile(r'^keylock_run_images_(sum|count)\{graph="grad_cam"\} (\S+)$', re.MULTILINE)


_KINDS = ("float32", "uint8", "jpeg")


class Calls:
    """Calls to a server, each caller's on a connection of its own."""

    def __init__(self, target: str, process: ServerProcess, metadata: tuple[tuple[str, str], ...]) -> None:
        """Takes where it listens, what it runs in, and what calls carry."""
        self._process, self._metadata = process, metadata
        self._stubs = Channels(target, explanation_pb2_grpc.ExplanationServiceStub)

    async def once(self, image: pb.Image) -> pb.ExplainResponse:
        """Asks about one image, until there is a server that answers."""
        request = pb.ExplainRequest(images=[image], explainer=_TASK)
        return await self._stubs[0].Explain(request, metadata=self._metadata, timeout=120, wait_for_ready=True)

    async def ask(self, images: list[pb.Image], *, callers: int, calls: int) -> dict[str, float]:
        """Asks about images.

        Args:
            images: One for each caller, at least.
            callers: How many ask at the same time.
            calls: How often they ask together.
        """
        requests = [pb.ExplainRequest(images=[image], explainer=_TASK) for image in images]
        left, seconds = iter(range(calls)), []

        async def caller(number: int) -> None:
            stub = self._stubs[number]
            for _ in left:
                asked = time.perf_counter()
                answer = await stub.Explain(requests[number], metadata=self._metadata, timeout=120)
                seconds.append(time.perf_counter() - asked)
                assert answer.results[0].keyed
                assert answer.receipt

        worked = self._process.cpu_s
        await asyncio.gather(*(caller(number) for number in range(callers)))
        cpu_s = self._process.cpu_s - worked
        return {"cpu_ms": cpu_s / calls * 1000, "p50_ms": statistics.median(seconds) * 1000}

    async def close(self) -> None:
        """Closes the connections."""
        await self._stubs.close()


class Plain:
    """gRPC alone: a server that computes nothing, and the calls to it."""

    name = "gRPC alone"

    def __init__(self, build: "Build", work: Path) -> None:
        """Starts none yet; it will answer what a build does."""
        self._build, self._work = build, work

    async def ready(self, image: pb.Image) -> None:
        """Starts it, with the answer about an image."""
        answer, port = self._work / "answer", free_port()
        answer.write_bytes((await self._build.calls.once(image)).SerializeToString())
        command = [sys.executable, str(Path(__file__).with_name("plain_answers.py")), str(answer), str(port)]
        self.process = ServerProcess(command, self._work / "plain.log", environment=environment_of(ROOT))
        self.calls = Calls(f"127.0.0.1:{port}", self.process, self._build.metadata)
        await self.calls.once(image)

    async def ask(self, images: list[pb.Image], *, callers: int, calls: int) -> dict[str, float]:
        """Asks about images, as `Calls.ask` does; no graph is run."""
        return await self.calls.ask(images, callers=callers, calls=calls)

    async def close(self) -> None:
        """Ends it, if it was started."""
        if hasattr(self, "process"):
            await self.calls.close()
            self.process.stop()


class Build:
    """A server of one build, and the calls to it."""

    def __init__(self, name: str, tree: Path, material: Material, work: Path) -> None:
        """Starts it.

        Args:
            name: Of the build.
            tree: Its checkout.
            material: What it serves.
            work: For its files.
        """
        self.name = name
        home, self._ready = work / name, work / f"{name}.ready"
        token = make_home(material.home, home, tree)
        self._metrics = free_port()
        command = [sys.executable, "-m", "keylock", "serve", str(material.bundle), "--key-file", str(material.key_file)]
        command += ["--home", str(home), "--port", "0", "--ready-file", str(self._ready), "--device", "cpu"]
        self.process = ServerProcess(
            command,
            work / f"{name}.log",
            environment={
                **environment_of(tree),
                "KEYLOCK_SERVER_THREADS": "1",
                "KEYLOCK_SERVER_METRICS_PORT": str(self._metrics),
            },
        )
        self.metadata = (("authorization", f"Bearer {token}"),)

    async def ready(self) -> None:
        """Waits until it answers."""

        async def answers() -> bool:
            return self._ready.exists() and bool(self._ready.read_text("utf-8"))

        await self.process.ready(answers)
        self.calls = Calls(self._ready.read_text("utf-8").strip(), self.process, self.metadata)

    async def ask(self, images: list[pb.Image], *, callers: int, calls: int) -> dict[str, float]:
        """Asks about images, as `Calls.ask` does, and tells how many rows a run of the graph had."""
        rows = self._rows()
        figures = await self.calls.ask(images, callers=callers, calls=calls)
        after = self._rows()
        return {**figures, "rows": (after["sum"] - rows["sum"]) / (after["count"] - rows["count"])}

    async def close(self) -> None:
        """Ends it."""
        await self.calls.close()
        self.process.stop()

    def _rows(self) -> dict[str, float]:
        """Returns how many rows its runs had so far together, and how many runs there were."""
        with urlopen(f"http://127.0.0.1:{self._metrics}/metrics", timeout=10) as page:
            found = {name: float(value) for name, value in _ROWS.findall(page.read().decode("utf-8"))}
        return {"sum": 0.0, "count": 0.0} | found


def images_of(material: Material) -> dict[str, list[pb.Image]]:
    """Returns the images of a network in each form in which they are sent."""
    with open_bundle(material.bundle, trusted=(Home(material.home).verifying_key(),)) as bundle:
        preprocessing = bundle.manifest.preprocessing
    tensors = material.images()
    pixels = preprocessing.denormalise(tensors)
    return {
        "float32": [_tensor(one, pb.DATA_TYPE_FLOAT32) for one in tensors],
        "uint8": [_tensor(one, pb.DATA_TYPE_UINT8) for one in pixels],
        "jpeg": [pb.Image(encoded=_jpeg(one)) for one in pixels],
    }


def _tensor(array: NDArray[Any], dtype: Any) -> pb.Image:  # noqa: ANN401 - a number of an enumeration
    return pb.Image(tensor=pb.Tensor(dtype=dtype, shape=array.shape, data=array.tobytes()))


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


async def ask_bare(bare: BareOnnx, rows: int, *, images: int) -> dict[str, float]:
    """Runs the bare session on batches of some rows, for about so many images."""
    runs, seconds = max(2, images // rows), []
    worked = bare.process.cpu_s
    for _ in range(runs):
        asked = time.perf_counter()
        await bare.ask(_TASK, 0, rows)
        seconds.append(time.perf_counter() - asked)
    return {
        "cpu_ms": (bare.process.cpu_s - worked) / (runs * rows) * 1000,
        "p50_ms": statistics.median(seconds) * 1000,
    }


async def measure(
    material: Material, builds: list[Build], options: argparse.Namespace, calls: int, work: Path
) -> dict[str, Any]:
    """Measures one network; every figure is the median of the rounds, the first of which warms up."""
    bare = BareOnnx(material)
    bare.start(material.folder)
    plain = Plain(builds[-1], work)
    servers: list[Build | Plain] = [*builds, plain]
    try:
        await bare.ready()
        for build in builds:
            await build.ready()
        kinds = images_of(material)
        await plain.ready(kinds["jpeg"][0])
        session: dict[int, list[dict[str, float]]] = {rows: [] for rows in options.callers}
        found: dict[tuple[str, str, int], list[dict[str, float]]] = {}
        for number in range(options.rounds + 1):
            for callers in options.callers:
                session[callers].append(await ask_bare(bare, callers, images=calls))
                for kind in options.kinds:
                    for server in servers if number % 2 else reversed(servers):
                        figure = await server.ask(kinds[kind], callers=callers, calls=calls)
                        found.setdefault((server.name, kind, callers), []).append(figure)
    finally:
        await bare.stop()
        for server in servers:
            await server.close()
    times = {rows: statistics.median(one["cpu_ms"] for one in figures[1:]) for rows, figures in session.items()}
    waits = statistics.median(one["p50_ms"] for one in session[min(session)][1:])
    return {
        "bare_cpu_ms": {str(rows): round(value, 3) for rows, value in times.items()},
        "bare_p50_ms": round(waits, 3),
        "calls_each_round": calls,
        "builds": {
            server.name: {
                kind: {str(callers): _summary(found[server.name, kind, callers][1:], times, waits) for callers in times}
                for kind in options.kinds
            }
            for server in servers
        },
    }


def _summary(rounds: list[dict[str, float]], session: dict[int, float], session_p50_ms: float) -> dict[str, Any]:
    """Puts rounds together, and takes off what the bare session costs in batches of as many rows, if any."""
    sizes, costs = np.log2(list(session)), list(session.values())
    graphs = [float(np.interp(np.log2(one["rows"]), sizes, costs)) if "rows" in one else 0.0 for one in rounds]
    beside = [one["cpu_ms"] - graph for one, graph in zip(rounds, graphs, strict=True)]
    low, middle, high = statistics.quantiles(beside, n=4)
    p50_ms = statistics.median(one["p50_ms"] for one in rounds)
    return {
        "beside_cpu_ms": round(middle, 3),
        "quartiles_ms": [round(low, 3), round(high, 3)],
        "cpu_ms": round(statistics.median(one["cpu_ms"] for one in rounds), 3),
        "rows_in_a_run": round(statistics.median(one.get("rows", 0) for one in rounds), 2),
        "p50_ms": round(p50_ms, 3),
        "p50_over_bare_ms": round(p50_ms - session_p50_ms, 3),
    }


@contextmanager
def started(named: dict[str, Path], material: Material) -> Iterator[tuple[list[Build], Path]]:
    """Yields a server of each build, and a folder for files."""
    with tempfile.TemporaryDirectory() as work:
        builds: list[Build] = []
        try:
            for name, tree in named.items():
                builds.append(Build(name, tree, material, Path(work)))
            yield builds, Path(work)
        finally:
            for build in builds:
                build.process.stop()


def main() -> None:
    """Measures and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="+", metavar="NAME=CHECKOUT")
    parser.add_argument("--networks", nargs="+", choices=("thin", "resnet18"), default=["thin", "resnet18"])
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=list(_KINDS))
    parser.add_argument("--callers", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--calls", nargs="+", type=int, default=[320, 64], help="of each kind in a round, by network")
    parser.add_argument("--work", type=Path, default=Path("runs/serving"), help="where locked networks are kept")
    parser.add_argument("--results", type=Path, default=_RESULTS / "call_cost.json")
    options = parser.parse_args()
    named = {name: Path(tree).resolve() for name, _, tree in (one.partition("=") for one in options.builds)}
    networks: dict[str, Any] = {}
    load_before = round(os.getloadavg()[0], 1)
    for network, calls in zip(options.networks, [*options.calls, options.calls[-1]], strict=False):
        material = prepare(options.work, _SIDE, thin=network == "thin")
        with started(named, material) as (builds, work):
            networks[network] = asyncio.run(measure(material, builds, options, calls, work))
    result = {
        "hardware": f"{describe_processor()}, {os.cpu_count()} cores, one thread of computing for each server",
        "command": shlex.join(
            ["python", "benchmarks/serving/call_cost.py", *(f"{name}=CHECKOUT" for name in named), *_options()]
        ),
        "commits": {name: commit_of(tree) for name, tree in named.items()},
        "rounds": options.rounds,
        "load_average": [load_before, round(os.getloadavg()[0], 1)],
        "networks": networks,
    }
    record(options.results.stem, result, folder=options.results.parent)


def _options() -> list[str]:
    """Returns the options of the command line, without builds, work folder and file of results."""
    given, hidden = sys.argv[1:], ("--work", "--results")
    return [
        one
        for number, one in enumerate(given)
        if "=" not in one and one not in hidden and given[number - 1] not in hidden
    ]


if __name__ == "__main__":
    main()
