"""Three servers on one PostgreSQL behind a balancer: restarted one by one, killed, and counted; then the books.

    python benchmarks/fleet/fleet.py restarts --times 10 --callers 8 --seed 1
    python benchmarks/fleet/fleet.py kills --seconds 300 --callers 16 --seed 1
    python benchmarks/fleet/fleet.py database --times 6 --callers 8 --seed 1
    python benchmarks/fleet/fleet.py throughput --seconds 20 --callers 16

It needs the programs of PostgreSQL, and `haproxy` or, with `--balancer nginx`, `nginx`. The configurations of both are
those of `deploy/`.

*restarts*: rolling restarts, as an upgrade makes them: a server is told to leave, its health says so, HAProxy notices
within `notice_s`, it drains and ends, and a new one takes its place before the next one's turn.
The callers never try anything again, so a call that fails is counted as failed. *kills*: a server is killed without
warning every few seconds and started again; callers try again under the same request id, as the SDK does, and others
beside them never do. *database*: PostgreSQL is stopped in order and killed in turns, and is away for two seconds.
*throughput*: calls in a second of processor time of one server and of two, in turns.
"""

import argparse
import asyncio
import contextlib
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks" / "licensing"), str(ROOT / "benchmarks" / "serving"), str(ROOT / "tests")]

from asking import Steady, Usage
from balancer import BALANCERS, Balancer, HAProxy
from load import FAULTS, Load, audit
from processes import free_port
from world import Server, World, record

from keylock.licensing import Quota

if TYPE_CHECKING:
    from postgresql_cluster import Cluster

Run = Callable[[Coroutine[Any, Any, Any]], Any]

RESULTS = ROOT / "benchmarks" / "results" / "fleet"
_MUCH = Quota(total=10**9)


class Fleet:
    """Servers, each on a port of its own that it keeps, and the balancer before them."""

    def __init__(
        self, world: World, count: int = 3, *, kind: type[Balancer] = HAProxy, quiet_s: float | None = None
    ) -> None:
        """Start them.

        Args:
            world: Whose bundle they serve.
            count: How many, three at most.
            kind: Of the balancer.
            quiet_s: How long it leaves a quiet stream alone, in seconds, in place of what its configuration says.
        """
        self._world, self._settings = world, {"notice_s": kind.notice_s}
        self.servers = [self._start(number, 0) for number in range(count)]
        # Places of the configuration that no server takes are those of servers that are down.
        targets = [server.target for server in self.servers]
        targets += [f"127.0.0.1:{free_port()}" for _ in range(3 - count)]
        self.balancer = kind(world.folder, targets, least=count, quiet_s=quiet_s)

    def _start(self, number: int, port: int) -> Server:
        return Server(self._world, f"fleet-{number}", port=port, settings=self._settings)

    def restart(self, number: int) -> None:
        """Let one server leave, and start another in its place; return when the balancer has noticed it."""
        server, count = self.servers[number], len(self.servers)
        server.stop()
        self.servers[number] = self._start(number, server.port)
        self.balancer.wait_for(count)

    def kill(self, number: int) -> tuple[float, float]:
        """End one without warning, and start another in its place.

        Returns:
            Just before it was killed and just after it had ended, by the monotonic clock, in seconds.
        """
        server, before = self.servers[number], time.monotonic()
        server.kill()
        after = time.monotonic()
        self.servers[number] = self._start(number, server.port)
        return before, after

    def stop(self) -> None:
        """End all of it."""
        self.balancer.stop()
        for server in self.servers:
            server.stop()


def restarts(
    world: World,
    *,
    times: int,
    callers: int,
    seed: int,
    pause_s: float = 0.02,
    kind: type[Balancer] = HAProxy,
    run: Run = asyncio.run,
) -> dict[str, object]:
    """Restart all servers one by one, so many times, under callers that never try again."""
    _, token = world.grant(quota=_MUCH)
    fleet, began = Fleet(world, kind=kind), time.monotonic()
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
        "balancer": kind.program,
        "rolling_restarts": times,
        "servers": len(fleet.servers),
        "callers": callers,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "seconds_of_a_rolling_restart": round(sum(took) / len(took), 1),
        "calls": sum(steady.outcomes.values()),
        "failed_calls": steady.failed_calls,
        "outcomes": dict(steady.outcomes),
        "failures": steady.failures[:20],
        "units_answered": steady.units,
        "units_charged": books.reconciliation.units,
        "units_reserved_at_end": books.reconciliation.reserved,
        "ledger_and_counters_differ": len(books.reconciliation.differences),
        "ledger_and_audit_log_differ": books.unlogged,
    }


def kills(
    world: World,
    *,
    seconds: float,
    callers: int,
    seed: int,
    every_s: float = 5.0,
    kind: type[Balancer] = HAProxy,
    run: Run = asyncio.run,
) -> dict[str, object]:
    """Kill a server every few seconds under callers that try again; then compare all books.

    A quarter as many callers beside them ask without a license and never try again.
    """
    _, token = world.grant(quota=_MUCH)
    fleet, began, generator = Fleet(world, kind=kind), time.monotonic(), random.Random(seed)
    killed: list[tuple[float, float]] = []

    async def all_of_it() -> tuple[Load, Steady]:
        load = Load(world, [fleet.balancer.target], token, seed=seed, callers=callers)
        steady = Steady(fleet.balancer.target, None, callers=max(1, callers // 4), pause_s=0.02, seed=seed)
        running = [asyncio.create_task(one.run()) for one in (load, steady)]
        while time.monotonic() - began < seconds:
            turn = time.monotonic()
            killed.append(await asyncio.to_thread(fleet.kill, generator.randrange(len(fleet.servers))))
            await asyncio.sleep(max(0.0, every_s - (time.monotonic() - turn)))
        load.stop()
        steady.stop()
        await asyncio.gather(*running)
        return load, steady

    try:
        load, steady = run(all_of_it())
    finally:
        fleet.stop()
    clients, books = load.clients, audit(world.books(), load.clients, quota=10**9)
    under_way = [any(before <= ended and began <= after for before, after in killed) for began, ended in steady.failed]
    return {
        "balancer": kind.program,
        "kills": len(killed),
        "servers": len(fleet.servers),
        "callers": callers,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "calls": clients.calls,
        "outcomes": dict(clients.outcomes),
        "remarks": clients.remarks[:20],
        "faults": {fault: books[fault] for fault in FAULTS},
        "books": books,
        "never_tried_again": {
            "calls": sum(steady.outcomes.values()),
            "failed_calls": steady.failed_calls,
            "failed_calls_begun_after_a_kill": len(under_way) - sum(under_way),
            "outcomes": dict(steady.outcomes),
            "failures": steady.failures[:20],
        },
    }


def database(
    world: World,
    cluster: "Cluster",
    *,
    times: int,
    callers: int,
    seed: int,
    every_s: float = 6.0,
    away_s: float = 2.0,
    kind: type[Balancer] = HAProxy,
    run: Run = asyncio.run,
) -> dict[str, object]:
    """Stop and kill the database in turns under callers that try again, and others that need no database."""
    _, token = world.grant(quota=_MUCH)
    fleet, began = Fleet(world, kind=kind), time.monotonic()
    back: list[float] = []

    async def all_of_it() -> tuple[Load, Steady, Usage]:
        load = Load(world, [fleet.balancer.target], token, seed=seed, callers=callers)
        steady = Steady(fleet.balancer.target, None, callers=max(1, callers // 4), pause_s=0.02, seed=seed)
        usage = Usage(fleet.balancer.target, token)
        running = [asyncio.create_task(one.run()) for one in (load, steady, usage)]
        for turn in range(times):
            await asyncio.sleep(every_s / 2)
            await asyncio.to_thread(cluster.stop, signal.SIGQUIT if turn % 2 else signal.SIGINT)
            await asyncio.sleep(away_s)
            await asyncio.to_thread(cluster.start)
            back.append(time.monotonic())
            await asyncio.sleep(every_s / 2)
        for one in (load, steady, usage):
            one.stop()
        await asyncio.gather(*running)
        return load, steady, usage

    try:
        load, steady, usage = run(all_of_it())
    finally:
        fleet.stop()
    clients, books = load.clients, audit(world.books(), load.clients, quota=10**9)
    again = [min((at - came for at in usage.answered if at > came), default=float("inf")) for came in back]
    return {
        "balancer": kind.program,
        "restarts_of_the_database": times,
        "away_s": away_s,
        "servers": len(fleet.servers),
        "callers": callers,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "calls": clients.calls,
        "outcomes": dict(clients.outcomes),
        "remarks": clients.remarks[:20],
        "faults": {fault: books[fault] for fault in FAULTS},
        "books": books,
        "usage_asked": dict(usage.outcomes),
        "most_seconds_until_licensed_again": round(max(again), 2),
        "without_a_license": {
            "calls": sum(steady.outcomes.values()),
            "failed_calls": steady.failed_calls,
            "failures": steady.failures[:20],
        },
    }


def throughput(
    world: World,
    *,
    seconds: float,
    callers: int,
    rounds: int = 3,
    kind: type[Balancer] = HAProxy,
    run: Run = asyncio.run,
) -> dict[str, object]:
    """Count the calls that one server and two serve in a second of processor time of one of them.

    Each server has as many callers, because what a call costs depends on how many share a run. The two take turns, and
    the median of the rounds counts, because other programs change what a second of the processor is worth.
    """
    _, token = world.grant(quota=_MUCH)
    found: dict[str, list[dict[str, float]]] = {"1": [], "2": []}
    for _ in range(rounds):
        for count, rows in found.items():
            fleet = Fleet(world, int(count), kind=kind)
            try:
                rows.append(run(_count(fleet, token, seconds=seconds, callers=callers * int(count))))
            finally:
                fleet.stop()
    pairs = zip(found["1"], found["2"], strict=True)
    ratios = [2 * two["calls_in_a_second_of_a_server"] / one["calls_in_a_second_of_a_server"] for one, two in pairs]
    return {
        "balancer": kind.program,
        "callers_of_a_server": callers,
        "rounds": rounds,
        "servers": found,
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 3),
    }


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
        "failed_calls": steady.failed_calls,
    }


def main() -> None:
    """Run one of them, on a PostgreSQL that is started for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("restarts", "kills", "database", "throughput"))
    parser.add_argument("--balancer", choices=tuple(BALANCERS), default=HAProxy.program)
    parser.add_argument("--times", type=int, default=10, help="rolling restarts, or restarts of the database")
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
        kind = BALANCERS[options.balancer]
        common: dict[str, Any] = {"callers": options.callers, "kind": kind}
        if options.what == "restarts":
            result = restarts(world, times=options.times, seed=options.seed, **common)
        elif options.what == "kills":
            result = kills(world, seconds=options.seconds, seed=options.seed, **common)
        elif options.what == "database":
            result = database(world, cluster, times=options.times, seed=options.seed, **common)
        else:
            result = throughput(world, seconds=options.seconds, **common)
        name = options.what if kind is HAProxy else f"{options.what}_{kind.program}"
        record(name, {"command": " ".join(["python", *sys.argv]), **result}, folder=RESULTS)


if __name__ == "__main__":
    main()
