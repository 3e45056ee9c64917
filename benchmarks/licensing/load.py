"""Callers that retry, repeat, cancel and run out of time, against servers that may be killed; then the books.

    python benchmarks/licensing/load.py callers --calls 100000 --callers 64 --seed 1
    python benchmarks/licensing/load.py kills --kills 100 --callers 64 --seed 1
    python benchmarks/licensing/load.py three --seconds 90 --seed 1          (PostgreSQL)

`--store postgresql` runs on a PostgreSQL that is started for it; the default is SQLite. Each caller goes on with a
request until it is answered or refused for good, under one request id, as a client should, verifies the receipt of each
answer, and waits a little longer after each call that found no server.

After every kill, after every few thousand calls and at the end the callers stand still and all books are compared:
ledger, counters, audit log with its tree, and the receipts that the callers hold. What was found so far is written each
time, with `"complete": false`, so that a run which is cut short says what it has seen.
"""

import argparse
import asyncio
import contextlib
import hashlib
import math
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc
from world import Books, Server, World, image, record

from keylock.errors import ReceiptError
from keylock.licensing import Quota
from keylock.licensing.answers import digests_of
from keylock.licensing.receipts import Receipt, trusts_any
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc

Run: TypeAlias = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine: `asyncio.run`, or the loop of a program that has one for gRPC already."""

Progress: TypeAlias = Callable[[dict[str, object]], None]
"""Is told what was found so far."""

_COMPARE_EVERY = 5_000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.4
_CHANNEL = [
    # A server that was killed is back within a second or two: a channel must not take much longer to look again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 400),
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass
class Clients:
    """What the callers hold, and what came of their calls.

    Attributes:
        answered: The units they were told, by request.
        entries: The digests of what their receipts say, by request; receipts that do not hold are not in it.
        first_answers: How often an answer said that it was charged now, by request.
        outcomes: How calls ended.
        calls: How many there were.
        under_way: How many are.
        remarks: What was wrong with maps and receipts, in words.
    """

    answered: dict[str, int] = field(default_factory=dict)
    entries: dict[str, bytes] = field(default_factory=dict)
    first_answers: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    under_way: int = 0
    remarks: list[str] = field(default_factory=list)
    _maps: dict[str, bytes] = field(default_factory=dict)
    _charges: dict[str, bytes] = field(default_factory=dict)

    def note(self, request_id: str, answer: pb.ExplainResponse, world: World) -> None:
        """Takes an answer, and verifies its receipt as a client does."""
        usage = answer.usage
        self.outcomes["REPLAYED" if usage.replayed else "CHARGED"] += 1
        self.first_answers[request_id] += not usage.replayed
        if self.answered.setdefault(request_id, usage.units) != usage.units:
            self.outcomes["OTHER_UNITS"] += 1
        maps = hashlib.sha256(b"".join(result.map.data for result in answer.results)).digest()
        if self._maps.setdefault(request_id, maps) != maps:
            self._remark("OTHER_MAPS", request_id, answer)
        self._verify(request_id, answer, world)

    def _verify(self, request_id: str, answer: pb.ExplainResponse, world: World) -> None:
        try:
            receipt = Receipt.verify(answer.receipt, trusts_any([world.signing_key.verifying_key]))
        except ReceiptError:
            self._remark("BAD_RECEIPT", request_id, answer)
            return
        charge = receipt.charge
        said = (charge.license_id, charge.request_id, charge.units, charge.answer)
        if said == (answer.usage.license_id, request_id, answer.usage.units, digests_of(answer.results)):
            entry = hashlib.sha256(receipt.entry).digest()
            if charge.repeats is not None:
                self.entries.setdefault(request_id, entry)
            # The entry of a repeat is that of the charge, byte for byte, where the maps are.
            elif self._charges.setdefault(request_id, entry) != entry:
                self._remark("OTHER_RECEIPT", request_id, answer)
            else:
                self.entries[request_id] = entry
        else:
            self._remark("OTHER_RECEIPT", request_id, answer)

    def _remark(self, what: str, request_id: str, answer: pb.ExplainResponse) -> None:
        self.outcomes[what] += 1
        usage, size = answer.usage, len(answer.receipt)
        charged = usage.charged_at.ToJsonString()
        self.remarks.append(f"{what} {request_id}: {size} characters, replayed {usage.replayed}, charged {charged}")


class Load:
    """Runs callers until it is told to stop; they finish what they have begun."""

    def __init__(self, world: World, targets: list[str], token: str, *, seed: int, callers: int) -> None:
        self.clients = Clients()
        self._world, self._targets, self._token = world, targets, token
        self._stopping = asyncio.Event()
        self._seed, self._callers = seed, callers
        self._next = 0

    def stop(self) -> None:
        """Lets the callers finish what they have begun, and no more."""
        self._stopping.set()

    async def run(self, *, most: float = math.inf) -> Clients:
        """Runs the callers until they are done.

        Args:
            most: After so many calls, those of earlier runs included, no further request is begun.
        """
        self._stopping.clear()
        channels = [grpc.aio.insecure_channel(target, options=_CHANNEL) for target in self._targets]
        try:
            await asyncio.gather(*(self._caller(number, channels, most) for number in range(self._callers)))
        finally:
            for channel in channels:
                await channel.close()
        return self.clients

    async def _caller(self, number: int, channels: list[grpc.aio.Channel], most: float) -> None:
        generator = random.Random(f"{self._seed}/{number}/{self._next}")
        stubs = [explanation_pb2_grpc.ExplanationServiceStub(channel) for channel in channels]
        while not self._stopping.is_set() and self.clients.calls < most:
            self._next += 1
            # Now and then two callers work on one request at the same time, or a finished one is asked for again.
            old = generator.random() < 0.15 and self._next > 5
            place = generator.randrange(max(1, self._next - 40), self._next) if old else self._next
            await self._until_done(f"r{place}", place, stubs, generator)

    async def _until_done(self, request_id: str, place: int, stubs: list[Any], generator: random.Random) -> None:
        shape = random.Random(f"{self._seed}/shape/{place}")
        images = [image(place * 4 + n) for n in range(shape.choice((1, 1, 1, 2, 3)))]
        request = pb.ExplainRequest(request_id=request_id, images=images, explainer=shape.choice(("", "coarse")))
        clients, pause_s = self.clients, _FIRST_PAUSE_S
        while True:
            try:
                answer = await self._call(generator.choice(stubs), request, generator)
            except asyncio.CancelledError:
                clients.outcomes["CANCELLED"] += 1
                continue
            except grpc.aio.AioRpcError as error:
                clients.outcomes[error.code().name] += 1
                if _is_spent(error):
                    return
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                    await asyncio.sleep(pause_s * generator.uniform(0.5, 1))
                    pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
                elif error.code() not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                continue
            clients.note(request_id, answer, self._world)
            # A retry of what was answered already, as after an answer that was lost on the way.
            if generator.random() >= 0.1:
                return

    async def _call(self, stub: Any, request: pb.ExplainRequest, generator: random.Random) -> pb.ExplainResponse:  # noqa: ANN401
        kind = generator.random()
        timeout = generator.uniform(0.001, 0.03) if kind < 0.1 else 20
        call = stub.Explain(request, timeout=timeout, metadata=[("authorization", f"Bearer {self._token}")])
        if 0.1 <= kind < 0.2:
            asyncio.get_running_loop().call_later(generator.uniform(0, 0.03), call.cancel)
        self.clients.calls += 1
        self.clients.under_way += 1
        try:
            answer: pb.ExplainResponse = await call
        finally:
            self.clients.under_way -= 1
        return answer


def _is_spent(error: grpc.aio.AioRpcError) -> bool:
    details = [value for name, value in error.trailing_metadata() or () if name == "grpc-status-details-bin"]
    return error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and any(b"QUOTA_SPENT" in value for value in details)


def audit(books: Books, clients: Clients, *, quota: int) -> dict[str, int]:
    """Compares what the callers hold with the books; what `FAULTS` names must be 0."""
    found, charged = books.reconciliation, books.charged
    return {
        "requests_charged": found.requests,
        "units_charged": found.units,
        "units_reserved_at_end": found.reserved,
        "log_entries": len(books.entries),
        "receipts_held": len(clients.entries),
        "double_charges": sum(count - 1 for count in clients.first_answers.values() if count > 1),
        "answers_without_charge": sum(request not in charged for request in clients.answered),
        "answers_with_other_units": sum(charged.get(r, u) != u for r, u in clients.answered.items()),
        "charges_without_answer": sum(request not in clients.answered for request in charged),
        "charges_without_receipt": sum(request not in clients.entries for request in charged),
        "receipts_not_in_the_log": sum(entry not in books.entries for entry in clients.entries.values()),
        "receipts_that_do_not_hold": clients.outcomes["BAD_RECEIPT"] + clients.outcomes["OTHER_RECEIPT"],
        "units_beyond_quota": max(0, found.units + found.reserved - quota),
        "ledger_and_counters_differ": len(found.differences),
        "ledger_and_audit_log_differ": books.unlogged,
        "answers_with_other_units_than_before": clients.outcomes["OTHER_UNITS"],
        "answers_with_other_maps_than_before": clients.outcomes["OTHER_MAPS"],
    }


FAULTS = (
    "double_charges",
    "answers_without_charge",
    "answers_with_other_units",
    "charges_without_answer",
    "charges_without_receipt",
    "receipts_not_in_the_log",
    "receipts_that_do_not_hold",
    "units_beyond_quota",
    "ledger_and_counters_differ",
    "ledger_and_audit_log_differ",
    "answers_with_other_units_than_before",
    "answers_with_other_maps_than_before",
)


def silent(found: dict[str, object]) -> None:
    """Takes no notice of what was found so far."""


def callers(
    world: World,
    *,
    calls: int,
    count: int,
    seed: int,
    minutes: float = math.inf,
    run: Run = asyncio.run,
    progress: Progress = silent,
) -> dict[str, object]:
    """Callers against one server, with a quota that does not suffice for all of them."""
    quota = round(calls * 0.6)
    _, token = world.grant(quota=Quota(total=quota))
    started = time.monotonic()
    server = Server(world, "callers")
    checks: list[dict[str, int]] = []

    def found(clients: Clients) -> dict[str, object]:
        return {
            "calls": clients.calls,
            "callers": count,
            "seed": seed,
            "quota": quota,
            "seconds": round(time.monotonic() - started, 1),
            "outcomes": dict(clients.outcomes),
            "remarks": clients.remarks[:20],
            "comparisons": len(checks),
            "comparisons_with_a_fault": sum(any(one[fault] for fault in FAULTS) for one in checks),
            "books": checks[-1],
        }

    load = Load(world, [server.target], token, seed=seed, callers=count)
    try:
        while load.clients.calls < calls and time.monotonic() - started < minutes * 60:
            run(load.run(most=min(calls, load.clients.calls + _COMPARE_EVERY)))
            checks.append(audit(world.books(), load.clients, quota=quota))
            progress(found(load.clients))
    finally:
        server.stop()
    return found(load.clients)


def kills(
    world: World,
    *,
    times: int,
    count: int,
    seed: int,
    between_s: float = 0.7,
    minutes: float = math.inf,
    run: Run = asyncio.run,
    progress: Progress = silent,
) -> dict[str, object]:
    """The same with a server that is killed under load and started again; the books are compared after every kill."""
    _, token = world.grant(quota=Quota(total=10**9))
    generator = random.Random(seed)
    started = time.monotonic()
    server = Server(world, "kills")
    rounds: list[dict[str, int]] = []
    under_way: list[int] = []
    restarts_s: list[float] = []

    def found(clients: Clients) -> dict[str, object]:
        return {
            "kills": len(rounds),
            "callers": count,
            "seed": seed,
            "seconds": round(time.monotonic() - started, 1),
            "calls": clients.calls,
            "outcomes": dict(clients.outcomes),
            "remarks": clients.remarks[:20],
            "calls_under_way_at_a_kill": {"least": min(under_way), "median": statistics.median(under_way)},
            "median_restart_s": round(statistics.median(restarts_s), 2),
            "rounds_with_a_fault": sum(any(one[fault] for fault in FAULTS) for one in rounds),
            "faults": {fault: sum(one[fault] for one in rounds) for fault in FAULTS},
            "books": rounds[-1],
        }

    async def one() -> None:
        nonlocal server
        running = asyncio.create_task(load.run())
        await asyncio.sleep(between_s * generator.uniform(0.5, 1.5))
        under_way.append(load.clients.under_way)
        port, killed = server.port, time.monotonic()
        await asyncio.to_thread(server.kill)
        server = await asyncio.to_thread(Server, world, "kills", port=port)
        restarts_s.append(time.monotonic() - killed)
        load.stop()
        await running

    load = Load(world, [server.target], token, seed=seed, callers=count)
    try:
        while len(rounds) < times and time.monotonic() - started < minutes * 60:
            run(one())
            rounds.append(audit(world.books(), load.clients, quota=10**9))
            progress(found(load.clients))
    finally:
        server.stop()
    return found(load.clients)


def three(
    world: World,
    *,
    seconds: float,
    count: int,
    seed: int,
    restart: Callable[[], None],
    pause_s: float,
    run: Run = asyncio.run,
) -> dict[str, object]:
    """Three servers on one PostgreSQL: one is stopped for a while, and the database is started again."""
    _, token = world.grant(quota=Quota(total=10**9))
    servers = [Server(world, f"three-{n}") for n in range(3)]

    async def all_of_it() -> Clients:
        load = Load(world, [server.target for server in servers], token, seed=seed, callers=count)
        running = asyncio.create_task(load.run())
        await asyncio.sleep(seconds * 0.2)
        servers[0].process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(pause_s)
        servers[0].process.send_signal(signal.SIGCONT)
        await asyncio.sleep(seconds * 0.1)
        await asyncio.to_thread(restart)
        await asyncio.sleep(seconds * 0.3)
        load.stop()
        return await running

    try:
        clients = run(all_of_it())
    finally:
        for server in servers:
            server.stop()
    return {
        "servers": 3,
        "callers": count,
        "seed": seed,
        "paused_s": pause_s,
        "calls": clients.calls,
        "outcomes": dict(clients.outcomes),
        "remarks": clients.remarks[:20],
        "books": audit(world.books(), clients, quota=10**9),
    }


def main() -> None:
    """Runs one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("callers", "kills", "three"))
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end earlier, after so long")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pause", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = f"sqlite:///{folder / 'licenses.db'}"
        cluster = None
        if options.store == "postgresql" or options.what == "three":
            from postgresql_cluster import Cluster

            cluster = Cluster()
            stack.callback(cluster.close)
            url = cluster.new_url()
        world = World.make(folder, url)
        stack.callback(world.store.close)
        database = "postgresql" if cluster is not None else "sqlite"
        heading = {"what": options.what, "database": database}
        name = f"{options.what}_{database}"

        def progress(found: dict[str, object]) -> None:
            record(name, {**heading, "complete": False, **found}, shown=False)
            counts = {key: found[key] for key in ("kills", "comparisons", "calls", "seconds") if key in found}
            print(counts, found["outcomes"], file=sys.stderr, flush=True)

        common: dict[str, Any] = {"count": options.callers, "seed": options.seed}
        if options.what == "callers":
            result = callers(world, calls=options.calls, minutes=options.minutes, progress=progress, **common)
        elif options.what == "kills":
            result = kills(world, times=options.kills, minutes=options.minutes, progress=progress, **common)
        else:
            assert cluster is not None

            def restart() -> None:
                cluster.stop()
                cluster.start()

            result = three(world, seconds=options.seconds, restart=restart, pause_s=options.pause, **common)
        record(name, {**heading, "complete": True, **result})


if __name__ == "__main__":
    main()
