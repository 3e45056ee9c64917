"""Callers of every kind, more than the server has room for, for as long as asked; then what is left behind.

    python benchmarks/serving/soak.py --seconds 600 --workers 2
    python benchmarks/serving/soak.py --seconds 600 --workers 2 --runtime openvino
    python benchmarks/serving/soak.py --seconds 600 --workers 2 --over http

Beside callers that behave there are some that ask for ten times what the queue takes, some that go away in the middle,
some that allow a millisecond, some whose requests are wrong in one way or another, and some that open connections and
send half a frame, or half a request. At the end nothing may wait in any queue, each call must have ended with a status
that fits it, and the books must agree with what the callers were told; how memory, open files and threads have grown is
written down.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lines import GrpcLine, HttpLine, RefusedError

ROOT = Path(__file__).resolve().parents[2]
# Vendor, bundle and server are those of the benchmarks of licensing.
sys.path.insert(0, str(ROOT / "benchmarks" / "licensing"))

from world import Server, World, image, record

from keylock.inference import inference_pb2
from keylock.v1 import explanation_pb2 as pb

RESULTS = ROOT / "benchmarks" / "results" / "serving"
QUEUE = 64
MOST = 16
PAUSE_S = 0.1
EXPLAIN = "/keylock.v1.ExplanationService/Explain"
INFER = "/inference.GRPCInferenceService/ModelInfer"
Line = GrpcLine | HttpLine
HURRIED = ("vanishing", "hasty", "wrong")
"""Callers who pause between calls: what they do ends at once, and without a pause they would be nothing but a flood."""
EXPECTED = {
    "predicting": {"OK", "OVERLOADED"},
    "unlicensed": {"OK", "OVERLOADED"},
    "licensed": {"OK", "OVERLOADED"},
    "greedy": {"OK", "OVERLOADED"},
    "vanishing": {"OK", "OVERLOADED", "CANCELLED"},
    "hasty": {"OK", "OVERLOADED", "DEADLINE_EXCEEDED"},
    "wrong": {"INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "OVERLOADED"},
}
"""The statuses that callers of a kind may see; `OVERLOADED` is `UNAVAILABLE` with a time to come again."""

HALVES = {
    "grpc": (
        b"",
        b"PRI * HT",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x10\x00\x01",
    ),
    "http": (
        b"",
        b"POST /v1/exp",
        b"POST /v1/explain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
    ),
}
"""What is sent by those who send no whole request."""


@dataclass
class Seen:
    """What the callers saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    units: int = 0
    images: int = 0


@dataclass
class Sample:
    """How large the server was, all of its processes together."""

    at_s: float
    memory_mib: float
    files: int
    threads: int


@dataclass(frozen=True)
class Task:
    """What a process of callers is told; by its standard input, because tokens are no arguments."""

    role: str
    over: str
    target: str
    tokens: list[str]
    greedy: int
    seconds: float
    seed: int


class Callers:
    """Callers until a time."""

    def __init__(self, target: str, tokens: list[str], *, over: str, until: float, seed: int) -> None:
        """Gets ready; all the greedy callers share the first license, the others take any of the rest, or none."""
        self.seen = Seen()
        self._target, self._over, self._until = target, over, until
        self._greedy_token, self._tokens = tokens[0], tokens[1:]
        self._random = random.Random(seed)
        self._images = [image(i) for i in range(MOST + 1)]

    async def run(self, role: str, *, greedy: int) -> Seen:
        """Runs callers of the kinds of a role until it is time."""
        kinds: dict[str, list[tuple[str, int, Callable[[Line], Awaitable[None]]]]] = {
            "good": [
                ("predicting", 2, self._predicting),
                ("unlicensed", 2, lambda line: self._steady(line, None)),
                ("licensed", 2, lambda line: self._steady(line, self._random.choice(self._tokens))),
            ],
            "greedy": [("greedy", greedy, self._greedy)],
            "bad": [("vanishing", 4, self._vanishing), ("hasty", 2, self._hasty), ("wrong", 2, self._wrong)],
        }
        tasks = [self._repeat(kind, call) for kind, count, call in kinds[role] for _ in range(count)]
        await asyncio.gather(*tasks, *([self._halfway()] if role == "bad" else []))
        return self.seen

    async def _repeat(self, kind: str, call: Callable[[Line], Awaitable[None]]) -> None:
        async with self._line() as line:
            while time.monotonic() < self._until:
                status, started = "OK", time.monotonic()
                try:
                    await call(line)
                except asyncio.CancelledError:
                    status = "CANCELLED"
                except RefusedError as error:
                    status = error.status
                self.seen.statuses[f"{kind} {status}"] += 1
                if status == "OK":
                    self.seen.seconds[kind].append(time.monotonic() - started)
                if status == "OVERLOADED" or kind in HURRIED:
                    await asyncio.sleep(PAUSE_S)

    def _line(self) -> Line:
        return HttpLine(self._target, self._random) if self._over == "http" else GrpcLine(self._target)

    async def _explain(
        self,
        line: Line,
        images: list[pb.Image],
        *,
        token: str | None = None,
        timeout: float = 30,
        **fields: object,
    ) -> pb.ExplainResponse:
        explainer = fields.pop("explainer", self._random.choice(["brightness", "coarse"]))
        request = pb.ExplainRequest(images=images, explainer=explainer, **fields)
        return await line.ask(EXPLAIN, request, pb.ExplainResponse, token=token, timeout=timeout)

    def _some(self, most: int) -> list[pb.Image]:
        return self._random.choices(self._images, k=self._random.randint(1, most))

    def _count(self, answer: pb.ExplainResponse) -> None:
        self.seen.units += answer.usage.units
        self.seen.images += len(answer.results)

    async def _predicting(self, line: Line) -> None:
        request = inference_pb2.ModelInferRequest(model_name="tiny")
        sent = self._images[0].tensor
        request.inputs.add(name="image", datatype="FP32", shape=[1, *sent.shape])
        request.raw_input_contents.append(sent.data)
        await line.ask(INFER, request, inference_pb2.ModelInferResponse, token=None, timeout=30)

    async def _steady(self, line: Line, token: str | None) -> None:
        self._count(await self._explain(line, self._some(4), token=token))

    async def _greedy(self, line: Line) -> None:
        self._count(await self._explain(line, self._images[:MOST], token=self._greedy_token))

    async def _vanishing(self, line: Line) -> None:
        call = asyncio.ensure_future(
            self._explain(line, self._some(8), token=self._random.choice([None, *self._tokens]))
        )
        await asyncio.sleep(self._random.random() * 0.02)
        # Whether it was answered before, the books have to know: what was answered was charged.
        call.cancel()
        self._count(await call)

    async def _hasty(self, line: Line) -> None:
        self._count(await self._explain(line, self._some(2), token=self._random.choice(self._tokens), timeout=0.001))

    async def _wrong(self, line: Line) -> None:
        odd = pb.Image(tensor=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[3, 8, 9], data=bytes(864)))
        bad = self._random.randrange(5)
        if bad == 0:
            await self._explain(line, [self._images[0], odd])
        elif bad == 1:
            await self._explain(line, self._images[: MOST + 1])
        elif bad == 2:
            await self._explain(line, [pb.Image(encoded=b"no image")])
        elif bad == 3:
            await self._explain(line, self._some(2), explainer="nothing")
        else:
            await self._explain(line, self._some(2), token="a.b.c")  # noqa: S106 - none

    async def _halfway(self) -> None:
        """Opens connections, sends a part of what would come, and leaves them for a while."""
        host, _, port = self._target.rpartition(":")
        parts = HALVES[self._over]
        while time.monotonic() < self._until:
            opened = [socket.create_connection((host, int(port))) for _ in range(8)]
            for one in opened:
                one.sendall(self._random.choice(parts))
            await asyncio.sleep(min(2.0, max(0.0, self._until - time.monotonic())))
            for one in opened:
                one.close()


def measure(pids: list[int], started: float) -> Sample:
    """Measures processes (Linux)."""
    memory, files, threads = 0, 0, 0
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in status if ":" in line)
        memory += int(fields["VmRSS"].split()[0])
        threads += int(fields["Threads"])
        files += len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(time.monotonic() - started, memory / 1024, files, threads)


def processes(parent: int) -> list[int]:
    """Returns a process and its children (Linux)."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [parent, *map(int, children)]


def growth(samples: list[Sample], read: Callable[[Sample], float]) -> dict[str, float]:
    """Compares the second fifth of the time, when everything is warm, with the last."""
    fifth = max(1, len(samples) // 5)
    before = statistics.median(read(sample) for sample in samples[fifth : 2 * fifth] or samples[:1])
    after = statistics.median(read(sample) for sample in samples[-fifth:])
    return {"second_fifth": round(before, 1), "last_fifth": round(after, 1), "grown": round(after - before, 1)}


def spread(seconds: list[float]) -> dict[str, float]:
    """Describes how long calls took, in seconds."""
    cuts = statistics.quantiles(seconds, n=100) if len(seconds) > 1 else seconds * 99
    return {"p50": round(cuts[49], 3), "p95": round(cuts[94], 3), "p99": round(cuts[98], 3)}


def pending(ports: list[int]) -> float:
    """Reads from the metrics how many images wait or run."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    total = 0.0
    for port in ports:
        with opener.open(f"http://127.0.0.1:{port}/metrics") as page:
            lines = page.read().decode().splitlines()
        total += sum(float(line.split()[-1]) for line in lines if line.startswith("keylock_pending_images "))
    return total


def call(task: Task) -> None:
    """Is a process of callers: runs them, and prints what they saw."""
    callers = Callers(task.target, task.tokens, over=task.over, until=time.monotonic() + task.seconds, seed=task.seed)
    print(json.dumps(vars(asyncio.run(callers.run(task.role, greedy=task.greedy)))))


def soak(server: Server, task: Task) -> tuple[Seen, list[Sample]]:
    """Runs callers of every role, each in a process of its own, and looks at the server every second."""
    running = []
    for role in ("good", "greedy", "bad"):
        command = [sys.executable, __file__, "--callers"]
        running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        writing = running[-1].stdin
        assert writing is not None
        with writing:
            json.dump(asdict(replace(task, role=role)), writing)
        running[-1].stdin = None
    started, samples = time.monotonic(), []
    # Read while they run: what they print in the end is more than a pipe holds.
    with ThreadPoolExecutor(len(running)) as readers:
        printed = [readers.submit(process.communicate) for process in running]
        while not all(one.done() for one in printed):
            samples.append(measure(processes(server.process.pid), started))
            time.sleep(1.0)
    seen = Seen()
    for one in (json.loads(found.result()[0]) for found in printed):
        seen.statuses.update(one["statuses"])
        seen.seconds.update(one["seconds"])
        seen.units += one["units"]
        seen.images += one["images"]
    return seen, samples


def wait_for_rest(ports: list[int], limit_s: float = 20.0) -> float:
    """Waits until nothing is pending, and returns what is left in the end."""
    until = time.monotonic() + limit_s
    while (left := pending(ports)) and time.monotonic() < until:
        time.sleep(0.1)
    return left


def free_ports(count: int) -> int:
    """Finds consecutive free ports, and returns the first."""
    while True:
        with contextlib.ExitStack() as stack:
            first = 0
            with contextlib.suppress(OSError, OverflowError):
                for offset in range(count):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", first + offset if first else 0))
                    first = first or probe.getsockname()[1]
                return first


def main() -> int:
    """Soaks a server, and returns 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("--over", choices=("grpc", "http"), default="grpc")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--callers", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.callers:
        call(Task(**json.load(sys.stdin)))
        return 0
    # Ten times what the queues have room for, asked for at the same time.
    greedy = 10 * QUEUE * options.workers // MOST
    first = free_ports(options.workers + 1)
    ports = [first + number for number in range(options.workers)]
    settings = {"queue": QUEUE, "max_images": MOST, "workers": options.workers, "metrics_port": first}
    settings["runtime"] = options.runtime
    if options.over == "http":
        settings["http_port"] = first + options.workers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with World.make(folder, f"sqlite:///{folder / 'licenses.db'}") as world:
            tokens = [world.grant()[1] for _ in range(5)]
            server = Server(world, "soaked", settings=settings)
            try:
                target = f"127.0.0.1:{first + options.workers}" if options.over == "http" else server.target
                task = Task("", options.over, target, tokens, greedy, options.seconds, options.seed)
                seen, samples = soak(server, task)
                left = wait_for_rest(ports)
                alive = len(processes(server.process.pid)) - (options.workers > 1)
                lines = (folder / "log-soaked").read_text().splitlines()
                log = [line for line in lines if not line.startswith("serving ")]
            finally:
                server.stop()
            books = world.books()
    unexpected = {key: n for key, n in seen.statuses.items() if key.split()[1] not in EXPECTED[key.split()[0]]}
    problems = []
    problems += [f"unexpected statuses: {unexpected}"] if unexpected else []
    problems += [f"{left:g} images are pending"] if left else []
    problems += [f"{alive} workers are alive"] if alive != options.workers else []
    problems += [f"the log has {len(log)} errors, first: {log[0]}"] if log else []
    disagree = books.unlogged or books.reconciliation.differences
    problems += [f"the books do not agree: {books.unlogged} unlogged"] if disagree else []
    problems += ["more was answered than charged"] if seen.units > sum(books.charged.values()) else []
    result: dict[str, object] = {
        "what": "soak",
        "seconds": options.seconds,
        "workers": options.workers,
        "runtime": options.runtime,
        "over": options.over,
        "queue": QUEUE,
        "greedy_images_at_once": greedy * MOST,
        "statuses": dict(sorted(seen.statuses.items())),
        "seconds_of_answered_calls": {kind: spread(seconds) for kind, seconds in sorted(seen.seconds.items())},
        "images_explained": seen.images,
        "units_answered": seen.units,
        "units_charged": sum(books.charged.values()),
        "memory_mib": growth(samples, lambda sample: sample.memory_mib),
        "files": growth(samples, lambda sample: sample.files),
        "threads": growth(samples, lambda sample: sample.threads),
        "exit_code": server.process.returncode,
        "problems": problems,
    }
    different = [name for name in (options.runtime, options.over) if name not in ("onnxruntime", "grpc")]
    record("_".join(["soak", *different]), result, folder=RESULTS)
    return int(bool(problems))


if __name__ == "__main__":
    raise SystemExit(main())
