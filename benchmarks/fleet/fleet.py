"""Three servers on one PostgreSQL behind HAProxy: restarted one by one, killed, and counted; then the books.

    python benchmarks/fleet/fleet.py restarts --times 10 --callers 8 --seed 1
    python benchmarks/fleet/fleet.py kills --seconds 300 --callers 16 --seed 1
    python benchmarks/fleet/fleet.py throughput --seconds 20 --callers 16

It needs `haproxy` and the programs of PostgreSQL. The balancer's configuration is `deploy/haproxy.cfg`.

*restarts*: rolling restarts, as an upgrade makes them: a server is told to leave, its health says so, the balancer
notices within `notice_s`, it drains and ends, and a new one takes its place before the next one's turn.
The callers never try anything again, so a call that fails is counted as failed. *kills*: a server is killed without
warning every few seconds and started again; callers try again under the same request id, as the SDK does.
*throughput*: calls in a second of processor time of one server and of two, the balancer's own beside them.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks" / "licensing"), str(ROOT / "benchmarks" / "serving"), str(ROOT / "tests")]

from balancer import Balancer
from load import FAULTS, Load, audit
from processes import free_port
from world import Server, World, image, record

from keylock.licensing import Quota
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc

Run = Callable[[Coroutine[Any, Any, Any]], Any]

RESULTS = ROOT / "benchmarks" / "results" / "fleet"
_NOTICE_S = 3.5
_MUCH = Quota(total=10**9)
_CHANNEL = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]


class Fleet:
    """Servers, each on a port of its own that it keeps, and the balancer before them."""

    def __init__(self, world: World, count: int = 3, *, notice_s: float = _NOTICE_S) -> None:
        """Start them."""
        self._world, self._settings = world, {"notice_s": notice_s}
        self.servers = [self._start(number, 0) for number in range(count)]
        # Places of the configuration that no server takes are those of servers that are down.
        targets = [server.target for server in self.servers]
        targets += [f"127.0.0.1:{free_port()}" for _ in range(3 - count)]
        self.balancer = Balancer(world.folder, targets, least=count)

    def _start(self, number: int, port: int) -> Server:
        return Server(self._world, f"fleet-{number}", port=port, settings=self._settings)

    def restart(self, number: int) -> None:
        """Let one server leave, and start another in its place; return when the balancer has noticed it."""
        server, count = self.servers[number], len(self.servers)
        server.stop()
        self.servers[number] = self._start(number, server.port)
        self._wait_for(count)

    def kill(self, number: int) -> None:
        """End one without warning, and start another in its place."""
        server = self.servers[number]
        server.kill()
        self.servers[number] = self._start(number, server.port)

    def _wait_for(self, count: int) -> None:
        limit = time.monotonic() + 30
        while self.balancer.healthy() < count and time.monotonic() < limit:
            time.sleep(0.05)

    def stop(self) -> None:
        """End all of it."""
        self.balancer.stop()
        for server in self.servers:
            server.stop()


class Steady:
    """Callers that ask once, at a pace, and count what fails."""

    def __init__(self, target: str, token: str, *, callers: int, pause_s: float, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []
        self.units = 0
        self._target, self._metadata = target, [("authorization", f"Bearer {token}")]
        self._callers, self._pause_s, self._seed = callers, pause_s, seed
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let the callers finish what they have begun."""
        self._stopping.set()

    async def run(self) -> None:
        """Call until told to stop."""
        await asyncio.gather(*(self._caller(number) for number in range(self._callers)))

    async def _caller(self, number: int) -> None:
        generator, place = random.Random(f"{self._seed}/{number}"), 0
        async with grpc.aio.insecure_channel(self._target, options=_CHANNEL) as channel:
            explain = explanation_pb2_grpc.ExplanationServiceStub(channel).Explain
            while not self._stopping.is_set():
                place += 1
                request = pb.ExplainRequest(request_id=f"s{number}-{place}", images=[image(number * 1000 + place % 50)])
                try:
                    answer = await explain(request, timeout=20, metadata=self._metadata)
                except grpc.aio.AioRpcError as error:
                    self.outcomes[error.code().name] += 1
                    self.failures.append(f"{request.request_id}: {error.code().name}: {error.details()}"[:300])
                else:
                    self.outcomes["OK"] += 1
                    self.units += answer.usage.units
                await asyncio.sleep(self._pause_s * generator.uniform(0.5, 1.5))


def restarts(
    world: World, *, times: int, callers: int, seed: int, pause_s: float = 0.02, run: Run = asyncio.run
) -> dict[str, object]:
    """Restart all servers one by one, so many times, under callers that never try again."""
    _, token = world.grant(quota=_MUCH)
    fleet, began = Fleet(world), time.monotonic()
    took: list[float] = []

    async def all_of_it() -> Steady:
        steady = Steady(fleet.balancer.target, token, callers=callers, pause_s=pause_s, seed=seed)
        running = asyncio.create_task(steady.run())
        for _ in range(times):
            started = time.monotonic()
            for number in range(len(fleet.servers)):
                await asyncio.to_thread(fleet.restart, number)
            took.append(time.monotonic() - started)
        steady.stop()
        await running
        return steady

    try:
        steady = run(all_of_it())
    finally:
        fleet.stop()
    books = world.books()
    return {
        "rolling_restarts": times,
        "servers": len(fleet.servers),
        "callers": callers,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "seconds_of_a_rolling_restart": round(sum(took) / len(took), 1),
        "calls": sum(steady.outcomes.values()),
        "failed_calls": sum(steady.outcomes.values()) - steady.outcomes["OK"],
        "outcomes": dict(steady.outcomes),
        "failures": steady.failures[:20],
        "units_answered": steady.units,
        "units_charged": books.reconciliation.units,
        "units_reserved_at_end": books.reconciliation.reserved,
        "ledger_and_counters_differ": len(books.reconciliation.differences),
        "ledger_and_audit_log_differ": books.unlogged,
    }


def kills(
    world: World, *, seconds: float, callers: int, seed: int, every_s: float = 5.0, run: Run = asyncio.run
) -> dict[str, object]:
    """Kill a server every few seconds under callers that try again; then compare all books."""
    _, token = world.grant(quota=_MUCH)
    fleet, began, generator = Fleet(world), time.monotonic(), random.Random(seed)
    killed = 0

    async def all_of_it() -> Load:
        nonlocal killed
        load = Load(world, [fleet.balancer.target], token, seed=seed, callers=callers)
        running = asyncio.create_task(load.run())
        while time.monotonic() - began < seconds:
            turn = time.monotonic()
            await asyncio.to_thread(fleet.kill, generator.randrange(len(fleet.servers)))
            killed += 1
            await asyncio.sleep(max(0.0, every_s - (time.monotonic() - turn)))
        load.stop()
        await running
        return load

    try:
        clients = run(all_of_it()).clients
    finally:
        fleet.stop()
    books = audit(world.books(), clients, quota=10**9)
    return {
        "kills": killed,
        "servers": len(fleet.servers),
        "callers": callers,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "calls": clients.calls,
        "outcomes": dict(clients.outcomes),
        "remarks": clients.remarks[:20],
        "faults": {fault: books[fault] for fault in FAULTS},
        "books": books,
    }


def throughput(world: World, *, seconds: float, callers: int, run: Run = asyncio.run) -> dict[str, object]:
    """Count the calls that one server and two serve in a second of processor time of one of them."""
    _, token = world.grant(quota=_MUCH)
    found: dict[str, dict[str, float]] = {}
    for count in (1, 2):
        fleet = Fleet(world, count)
        try:
            found[str(count)] = run(_count(fleet, token, seconds=seconds, callers=callers))
        finally:
            fleet.stop()
    each = [found[count]["calls_in_a_second_of_a_server"] * int(count) for count in found]
    return {"callers": callers, "servers": found, "ratio": round(each[1] / each[0], 3)}


async def _count(fleet: Fleet, token: str, *, seconds: float, callers: int) -> dict[str, float]:
    steady = Steady(fleet.balancer.target, token, callers=callers, pause_s=0.0, seed=1)
    running = asyncio.create_task(steady.run())
    await asyncio.sleep(min(2.0, seconds / 4))
    calls, before, began = steady.outcomes["OK"], [server.cpu_s for server in fleet.servers], time.monotonic()
    await asyncio.sleep(seconds)
    calls, took = steady.outcomes["OK"] - calls, time.monotonic() - began
    used = [server.cpu_s - earlier for server, earlier in zip(fleet.servers, before, strict=True)]
    steady.stop()
    await running
    return {
        "calls": calls,
        "calls_per_s": round(calls / took, 1),
        "cpu_ms_per_call": round(sum(used) / calls * 1000, 3),
        "calls_in_a_second_of_a_server": round(calls / sum(used), 1),
        "most_over_least_used": round(max(used) / min(used), 2),
        "failed_calls": sum(steady.outcomes.values()) - steady.outcomes["OK"],
    }


def main() -> None:
    """Run one of them, on a PostgreSQL that is started for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("restarts", "kills", "throughput"))
    parser.add_argument("--times", type=int, default=10, help="rolling restarts")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        from postgresql_cluster import Cluster

        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster = Cluster()
        stack.callback(cluster.close)
        world = World.make(folder, cluster.new_url())
        stack.callback(world.store.close)
        if options.what == "restarts":
            result = restarts(world, times=options.times, callers=options.callers, seed=options.seed)
        elif options.what == "kills":
            result = kills(world, seconds=options.seconds, callers=options.callers, seed=options.seed)
        else:
            result = throughput(world, seconds=options.seconds, callers=options.callers)
        record(options.what, {"command": " ".join(["python", *sys.argv]), **result}, folder=RESULTS)


if __name__ == "__main__":
    main()
