"""Looking for the secrets where they must not be: answers, error texts, logs, spans, metrics, `ps`, memory."""

import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import torch

from keylock.audit.budgets import Budget
from keylock.audit.contract import Check, Cost, Goal, Knowledge, NotApplicableError, Outcome, Steps, attack
from keylock.audit.service.bench import Bench, Needles, tensor_image
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc

__all__ = ["bad_requests", "memory_of"]

_CHUNK = 64 * 2**20
_SPANS_S = 10.0
_METHOD = "/keylock.v1.ExplanationService/Explain"
_TELLTALE = re.compile(rb"Traceback|File \"|\.py\b|site-packages|/tmp/|/home/|0x[0-9a-f]{8,}")


def _describe(found: dict[str, int]) -> str:
    return ", ".join(f"{name}: {number}" for name, number in found.items()) or "nothing"


def bad_requests(bench: Bench) -> Iterator[tuple[str, pb.ExplainRequest, tuple[tuple[str, str | bytes], ...]]]:
    """Yield requests that are wrong in many ways: name, request, metadata."""
    good = tensor_image(bench.images[0])
    one = pb.ExplainRequest
    yield "no image", one(), ()
    yield "unknown explainer", one(images=[good], explainer="../../etc/passwd"), ()
    yield "unknown model", one(images=[good], model_name="%s%n{0}"), ()
    yield "class out of range", one(images=[good], target_index=10**12), ()
    yield "unknown label", one(images=[good], target_label="\x00\x01"), ()
    yield "no image file", one(images=[pb.Image(encoded=b"GIF89a" + b"\xff" * 64)]), ()
    yield (
        "tensor of the wrong size",
        one(images=[pb.Image(tensor=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[3, 8], data=b"0" * 7))]),
        (),
    )
    yield (
        "tensor of a huge size",
        one(images=[pb.Image(tensor=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[3, 2**31, 2**31]))]),
        (),
    )
    for name, value in (
        ("empty license", "Bearer "),
        ("license of dots", "Bearer ..."),
        ("another scheme", "Basic a2V5bG9jazprZXlsb2Nr"),
        ("half a license", f"Bearer {bench.token[: len(bench.token) // 2]}"),
        ("license with an appendix", f"Bearer {bench.token}.x"),
    ):
        yield name, one(images=[good]), (("authorization", value),)


def _texts(bench: Bench, channel: grpc.Channel) -> Iterator[tuple[str, bytes]]:
    """Yield all that comes back from each bad request: details, trailing metadata, or the answer."""
    stub = explanation_pb2_grpc.ExplanationServiceStub(channel)
    for name, request, sent in bad_requests(bench):
        try:
            yield name, stub.Explain(request, metadata=sent, timeout=30).SerializeToString()
        except grpc.RpcError as error:
            yield name, _said(error)
    junk: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)
    try:
        yield "no protobuf", junk(b"\xff" * 64, timeout=30)
    except grpc.RpcError as error:
        yield "no protobuf", _said(error)


def _use(bench: Bench) -> int:
    """Make good calls, with a license and without, and bad ones; return how many."""
    with bench.channel() as channel:
        bench.explain(channel, 0)
        bench.explain(channel, 0, token=bench.token)
        return 2 + sum(1 for _ in _texts(bench, channel))


def _said(error: grpc.RpcError) -> bytes:
    """Return details and trailing metadata of a failed call."""
    trailing: Any = error.trailing_metadata() or ()
    values = [value if isinstance(value, bytes) else str(value).encode() for _, value in trailing]
    return b"\n".join([(error.details() or "").encode(), *values])


@attack("service/errors", Knowledge.T0, "Read every error text for secrets and insides.", goal=Goal.SERVICE)
def errors(bench: Bench, _budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    """Send what is wrong in many ways; no text may repeat a secret, a path of the server's or a traceback."""
    checks = []
    with bench.channel() as channel:
        for name, text in _texts(bench, channel):
            found = bench.needles.count(text)
            inside = _TELLTALE.search(text)
            shown = _describe(found) if found or inside is None else "insides of the server"
            checks.append(Check(name, not found and inside is None, shown))
    return Outcome(checks=tuple(checks), cost=Cost(queries=len(checks)))


@attack("service/answers", Knowledge.T0, "Search licensed and unlicensed answers for secrets.", goal=Goal.SERVICE)
def answers(bench: Bench, _budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    """No answer may hold the key, the seed, the delta or the license it was asked with."""
    checks = []
    with bench.channel() as channel:
        for name, token in (("unlicensed answer", None), ("licensed answer", bench.token)):
            found = bench.needles.count(bench.explain(channel, *range(8), token=token).SerializeToString())
            checks.append(Check(name, not found, _describe(found)))
        stub = explanation_pb2_grpc.ExplanationServiceStub(channel)
        described = stub.GetModel(pb.GetModelRequest(), timeout=30).SerializeToString()
        found = bench.needles.count(described)
        checks.append(Check("description of the model", not found, _describe(found)))
    return Outcome(checks=tuple(checks), cost=Cost(queries=16))


@attack("service/logs", Knowledge.T0, "Search the server's log, at its most talkative, for secrets.", goal=Goal.SERVICE)
def logs(bench: Bench, _budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    """Make good and bad calls, then search everything the server has written."""
    calls = _use(bench)
    written = bench.keyed.log.read_bytes()
    found = bench.needles.count(written)
    checks = (
        Check("something was logged", len(written) > 0, f"{len(written)} bytes"),
        Check("secrets in the log", not found, _describe(found)),
    )
    return Outcome(checks=checks, cost=Cost(queries=calls))


@attack("service/traces", Knowledge.T0, "Search the spans that the server exports for secrets.", goal=Goal.SERVICE)
def traces(bench: Bench, _budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    """Make good and bad calls, wait for their spans, and search these.

    Raises:
        NotApplicableError: There are no spans without OpenTelemetry.
    """
    from keylock_server.operations.tracing import can_export_spans

    if not can_export_spans():
        raise NotApplicableError("spans need OpenTelemetry: pip install 'keylock[otel]'")
    calls = _use(bench)
    until = time.monotonic() + _SPANS_S
    while not (spans := (written := bench.keyed.spans.read_bytes()).count(b'"trace_id"')) and time.monotonic() < until:
        time.sleep(0.1)
    found = bench.needles.count(written)
    checks = (
        Check("there are spans", spans > 0, f"{spans} found"),
        Check("secrets in spans", not found, _describe(found)),
    )
    return Outcome(checks=checks, cost=Cost(queries=calls))


@attack("service/metrics", Knowledge.T0, "Search the server's metrics for secrets.", goal=Goal.SERVICE)
def metrics(bench: Bench, _budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    """Make good and bad calls, then read the page that Prometheus reads.

    Raises:
        NotApplicableError: It cannot be read.
    """
    calls = _use(bench)
    # Straight to the server, whatever proxy the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{bench.keyed.metrics}/metrics", timeout=_SPANS_S) as page:
            written = page.read()
    except OSError as error:
        raise NotApplicableError(f"the metrics cannot be read: {error}") from None
    found = bench.needles.count(written)
    return Outcome(checks=(Check("secrets in metrics", not found, _describe(found)),), cost=Cost(queries=calls))


@attack("service/process", Knowledge.T1, "Search command line and environment of the server.", goal=Goal.SERVICE)
def process(bench: Bench, _budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    """Look where every user of the machine, or every user with the server's rights, can look.

    Raises:
        NotApplicableError: The system does not show it.
    """
    checks = []
    for name, file in (("command line, as ps shows it", "cmdline"), ("environment", "environ")):
        try:
            found = bench.needles.count(Path(f"/proc/{bench.keyed.pid}/{file}").read_bytes())
        except OSError as error:
            raise NotApplicableError(f"this system does not show other processes: {error.strerror}") from None
        checks.append(Check(name, not found, _describe(found)))
    return Outcome(checks=tuple(checks))


def memory_of(pid: int, needles: Needles) -> dict[str, int]:
    """Return how often each secret is in the writable memory of a process.

    Raises:
        NotApplicableError: The memory cannot be read here.
    """
    totals: dict[str, int] = {}
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8") as table, open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for line in table:
                span, rights, *_ = line.split()
                if not rights.startswith("rw"):
                    continue
                start, end = (int(number, 16) for number in span.split("-"))
                for place in range(start, end, _CHUNK):
                    try:
                        memory.seek(place)
                        data = memory.read(min(_CHUNK, end - place))
                    except (OSError, ValueError, OverflowError):
                        break  # Not everything that is mapped can be read, and it may be gone by now.
                    for name, number in needles.count(data).items():
                        totals[name] = totals.get(name, 0) + number
    except OSError as error:
        raise NotApplicableError(f"the memory of the server cannot be read here: {error.strerror}") from None
    return totals


@attack("service/memory", Knowledge.T1, "Search the memory of the servers for secrets.", goal=Goal.SERVICE)
def memory(bench: Bench, _budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    """A server of the public copy must not hold any secret. One with the key holds it: whoever has the machine has it.

    Raises:
        NotApplicableError: The memory of other processes cannot be read here.
    """
    with grpc.insecure_channel(bench.public.target) as channel:
        bench.explain(channel, 0)
    with bench.channel() as channel:
        bench.explain(channel, 0)
    without = memory_of(bench.public.pid, bench.needles)
    holding = memory_of(bench.keyed.pid, bench.needles)
    checks = (
        Check("server of the public copy", not without, _describe(without)),
        Check("server with the key, after an unlicensed call", None, f"expected to hold them: {_describe(holding)}"),
    )
    return Outcome(checks=checks, cost=Cost(queries=2))
