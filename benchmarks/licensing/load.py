"""Callers that retry, repeat, cancel and run out of time, against servers that may be killed; then the books.

    python benchmarks/licensing/load.py callers --calls 100000 --callers 64 --seed 1
    python benchmarks/licensing/load.py kills --kills 100 --callers 64 --seed 1
    python benchmarks/licensing/load.py three --seconds 90 --seed 1          (PostgreSQL)

`--store postgresql` runs on a PostgreSQL that is started for it; the default is SQLite. Each caller goes on with a
request until it is answered or refused for good, under one request id, as a client should.
"""

import argparse
import asyncio
import contextlib
import math
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc
from world import Server, World, image, record

from keylock.licensing import Quota
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc

Run: TypeAlias = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine: `asyncio.run`, or the loop of a program that has one for gRPC already."""


@dataclass
class Clients:
    """What the callers hold: for each request the units they were told, and what came of their calls."""

    answered: dict[str, int] = field(default_factory=dict)
    first_answers: Counter[str] = field(default_factory=Counter)
    refused: set[str] = field(default_factory=set)
    outcomes: Counter[str] = field(default_factory=Counter)
    receipts: int = 0
    calls: int = 0


class Load:
    """Runs callers until it is told to stop; they finish what they have begun."""

    def __init__(self, targets: list[str], token: str, *, seed: int, callers: int, most: int | None = None) -> None:
        self.clients = Clients()
        self._targets, self._token, self._most = targets, token, most
        self._stopping = asyncio.Event()
        self._seed, self._callers = seed, callers
        self._next = 0

    def stop(self) -> None:
        """Lets the callers finish what they have begun, and no more."""
        self._stopping.set()

    async def run(self) -> Clients:
        """Runs the callers until they are done."""
        channels = [grpc.aio.insecure_channel(target) for target in self._targets]
        try:
            await asyncio.gather(*(self._caller(number, channels) for number in range(self._callers)))
        finally:
            for channel in channels:
                await channel.close()
        return self.clients

    async def _caller(self, number: int, channels: list[grpc.aio.Channel]) -> None:
        generator = random.Random(f"{self._seed}/{number}")
        stubs = [explanation_pb2_grpc.ExplanationServiceStub(channel) for channel in channels]
        while not self._stopping.is_set() and (self._most is None or self.clients.calls < self._most):
            self._next += 1
            # Now and then two callers work on one request at the same time, or a finished one is asked for again.
            old = generator.random() < 0.15 and self._next > 5
            place = generator.randrange(max(1, self._next - 40), self._next) if old else self._next
            await self._until_done(f"r{place}", place, stubs, generator)

    async def _until_done(self, request_id: str, place: int, stubs: list[Any], generator: random.Random) -> None:
        shape = random.Random(f"{self._seed}/shape/{place}")
        images = [image(place * 4 + n) for n in range(shape.choice((1, 1, 1, 2, 3)))]
        request = pb.ExplainRequest(request_id=request_id, images=images, explainer=shape.choice(("", "coarse")))
        while True:
            stub = generator.choice(stubs)
            kind = generator.random()
            timeout = generator.uniform(0.001, 0.03) if kind < 0.1 else 20
            call = stub.Explain(request, timeout=timeout, metadata=[("authorization", f"Bearer {self._token}")])
            if 0.1 <= kind < 0.2:
                asyncio.get_running_loop().call_later(generator.uniform(0, 0.03), call.cancel)
            self.clients.calls += 1
            try:
                answer = await call
            except asyncio.CancelledError:
                self.clients.outcomes["CANCELLED"] += 1
                continue
            except grpc.aio.AioRpcError as error:
                self.clients.outcomes[error.code().name] += 1
                if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
                    self.clients.refused.add(request_id)
                    return
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    await asyncio.sleep(0.05)
                elif error.code() not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                continue
            self._note(request_id, answer)
            # A retry of what was answered already, as after an answer that was lost on the way.
            if generator.random() >= 0.1:
                return

    def _note(self, request_id: str, answer: pb.ExplainResponse) -> None:
        clients, units = self.clients, answer.usage.units
        clients.outcomes["REPLAYED" if answer.usage.replayed else "CHARGED"] += 1
        clients.first_answers[request_id] += not answer.usage.replayed
        clients.receipts += bool(answer.receipt)
        if clients.answered.setdefault(request_id, units) != units:
            clients.outcomes["OTHER_UNITS"] += 1


def audit(world: World, clients: Clients, *, quota: int) -> dict[str, int]:
    """Compares what the callers hold with the books. All but `requests`, `units` and `reserved` must be 0."""
    found, unlogged, charged = world.books()
    return {
        "requests_charged": found.requests,
        "units_charged": found.units,
        "units_reserved_at_end": found.reserved,
        "double_charges": sum(count - 1 for count in clients.first_answers.values() if count > 1),
        "answers_without_charge": sum(request not in charged for request in clients.answered),
        "answers_with_other_units": sum(charged.get(r, u) != u for r, u in clients.answered.items()),
        "charges_without_answer": sum(request not in clients.answered for request in charged),
        "units_beyond_quota": max(0, found.units + found.reserved - quota),
        "ledger_and_counters_differ": len(found.differences),
        "ledger_and_audit_log_differ": unlogged,
        "answers_with_other_units_than_before": clients.outcomes["OTHER_UNITS"],
    }


FAULTS = (
    "double_charges",
    "answers_without_charge",
    "answers_with_other_units",
    "charges_without_answer",
    "units_beyond_quota",
    "ledger_and_counters_differ",
    "ledger_and_audit_log_differ",
    "answers_with_other_units_than_before",
)


def callers(
    world: World, *, calls: int, count: int, seed: int, minutes: float = math.inf, run: Run = asyncio.run
) -> dict[str, object]:
    """Callers against one server, with a quota that does not suffice for all of them."""
    quota = round(calls * 0.6)
    _, token = world.grant(quota=Quota(total=quota))
    server = Server(world, "callers")
    started = time.monotonic()

    async def for_a_while() -> Clients:
        load = Load([server.target], token, seed=seed, callers=count, most=calls)
        if minutes < math.inf:
            asyncio.get_running_loop().call_later(minutes * 60, load.stop)
        return await load.run()

    try:
        clients = run(for_a_while())
    finally:
        server.stop()
    return {
        "calls": clients.calls,
        "callers": count,
        "seed": seed,
        "quota": quota,
        "seconds": round(time.monotonic() - started, 1),
        "outcomes": dict(clients.outcomes),
        "receipts_held": clients.receipts,
        "books": audit(world, clients, quota=quota),
    }


def kills(
    world: World,
    *,
    times: int,
    count: int,
    seed: int,
    between_s: float = 0.7,
    minutes: float = math.inf,
    run: Run = asyncio.run,
) -> dict[str, object]:
    """The same with a server that is killed under load and started again; the books are compared after every kill."""
    _, token = world.grant(quota=Quota(total=10**9))
    generator = random.Random(seed)
    server = Server(world, "kills")
    rounds: list[dict[str, int]] = []
    total: Counter[str] = Counter()
    held = Clients()
    calls = 0

    async def one(number: int) -> None:
        nonlocal server, calls
        load = Load([server.target], token, seed=seed * 1_000_003 + number, callers=count)
        load.clients = Clients(answered=held.answered, first_answers=held.first_answers)
        load._next = number * 1_000_000
        running = asyncio.create_task(load.run())
        await asyncio.sleep(between_s * generator.uniform(0.5, 1.5))
        port = server.port
        await asyncio.to_thread(server.kill)
        server = await asyncio.to_thread(Server, world, "kills", port=port)
        load.stop()
        clients = await running
        calls += clients.calls
        total.update(clients.outcomes)
        rounds.append(audit(world, clients, quota=10**9))

    end = time.monotonic() + minutes * 60
    try:
        for number in range(times):
            if time.monotonic() > end:
                break
            run(one(number))
    finally:
        server.stop()
    return {
        "kills": len(rounds),
        "callers": count,
        "seed": seed,
        "calls": calls,
        "outcomes": dict(total),
        "rounds_with_a_fault": sum(any(one[fault] for fault in FAULTS) for one in rounds),
        "faults": {fault: sum(one[fault] for one in rounds) for fault in FAULTS},
        "requests_charged": rounds[-1]["requests_charged"] if rounds else 0,
    }


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
        load = Load([server.target for server in servers], token, seed=seed, callers=count)
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
        "books": audit(world, clients, quota=10**9),
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
        if options.what == "callers":
            result = callers(
                world, calls=options.calls, count=options.callers, seed=options.seed, minutes=options.minutes
            )
        elif options.what == "kills":
            result = kills(
                world, times=options.kills, count=options.callers, seed=options.seed, minutes=options.minutes
            )
        else:
            assert cluster is not None

            def restart() -> None:
                cluster.stop()
                cluster.start()

            result = three(
                world,
                seconds=options.seconds,
                count=options.callers,
                seed=options.seed,
                restart=restart,
                pause_s=options.pause,
            )
        database = "postgresql" if cluster is not None else "sqlite"
        record(f"{options.what}_{database}", {"what": options.what, "database": database, **result})


if __name__ == "__main__":
    main()
