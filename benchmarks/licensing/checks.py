"""What a license check, a revocation and metering cost in time, on this machine.

python benchmarks/licensing/checks.py licenses        a check with 10, 10,000 and 1,000,000 licenses in the store
python benchmarks/licensing/checks.py revoke          from revoking to the last accepted call, on three servers
python benchmarks/licensing/checks.py metering        throughput with and without the ledger, at concurrency 32
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from sqlalchemy import insert
from world import Server, World, image, record

from keylock.licensing import License
from keylock.store import LicenseStore
from keylock.store.schema import LICENSES
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc


def licenses(url: str, counts: tuple[int, ...], *, checks: int) -> dict[str, object]:
    """Times checks of licenses all over the store, as it grows."""
    now = datetime.now(UTC)
    model = License(
        id="lic_x",
        customer="Acme",
        models=("*",),
        explainers=("*",),
        issued_at=now,
        not_before=now,
        expires=now + timedelta(days=1),
    )
    claims = json.loads(model.model_dump_json())
    row = {
        "customer": "Acme",
        "issuer": "key",
        "issued_at": int(now.timestamp()),
        "revoked_why": "",
        "suspended_why": "",
    }
    medians: dict[str, float] = {}
    with LicenseStore(url) as store:
        have = 0
        for count in counts:
            while have < count:
                size = min(20_000, count - have)
                rows = [
                    {**row, "id": f"lic_{n:07d}", "claims": json.dumps({**claims, "id": f"lic_{n:07d}"})}
                    for n in range(have, have + size)
                ]
                with store.database.transaction(writes=True) as connection:
                    connection.execute(insert(LICENSES), rows)
                have += size
            # Ten licenses again and again, so that the cost of the store is timed and not that of reading new claims.
            wanted = [f"lic_{n * (count - 1) // 9:07d}" for n in range(10)]
            for license_id in wanted:
                store.check(license_id)
            times = []
            for n in range(checks):
                started = time.perf_counter()
                store.check(wanted[n % 10])
                times.append(time.perf_counter() - started)
            medians[str(count)] = round(statistics.median(times) * 1e6, 1)
    first, last = medians[str(counts[0])], medians[str(counts[-1])]
    return {"checks": checks, "median_us": medians, "largest_to_smallest": round(last / first, 3)}


def revoke(world: World, *, servers: int, times: int) -> dict[str, object]:
    """Revokes licenses that are in use on every server, and finds the last call that was accepted after that."""
    running = [Server(world, f"revoke-{n}") for n in range(servers)]
    delays = []
    try:
        for number in range(times):
            license, token = world.grant()
            accepted = [0.0] * servers
            refused = [0] * servers
            over = threading.Event()

            def ask(n: int, token: str = token, number: int = number, over: threading.Event = over) -> None:
                metadata = [("authorization", f"Bearer {token}")]
                with grpc.insecure_channel(running[n].target) as channel:
                    stub = explanation_pb2_grpc.ExplanationServiceStub(channel)
                    while not over.is_set():
                        began = time.monotonic()
                        try:
                            stub.Explain(pb.ExplainRequest(images=[image(number)]), metadata=metadata, timeout=20)
                            accepted[n] = began  # noqa: B023 - read after the threads have ended
                        except grpc.RpcError:
                            refused[n] += 1  # noqa: B023

            threads = [threading.Thread(target=ask, args=(n,)) for n in range(servers)]
            for thread in threads:
                thread.start()
            time.sleep(1)
            world.store.revoke(license.id, at=datetime.now(UTC))
            revoked = time.monotonic()
            time.sleep(1)
            over.set()
            for thread in threads:
                thread.join()
            assert all(refused), "a server went on accepting"
            delays.append(max(0.0, max(accepted) - revoked))
    finally:
        for server in running:
            server.stop()
    return {"servers": servers, "revocations": times, "longest_s": round(max(delays), 4)}


def metering(world: World, *, calls: int, concurrency: int, rounds: int) -> dict[str, object]:
    """Times licensed calls to a server with a store and to one without, in turns.

    The model costs next to nothing, so this is the whole cost of metering a call, receipts and audit log included; the
    share of it in the time of a real model follows from that model's time.
    """
    _, token = world.grant()
    servers = {"with": Server(world, "metered"), "without": Server(world, "unmetered", store=False)}
    found: dict[str, list[float]] = {"with": [], "without": []}
    request = pb.ExplainRequest(images=[image(1)])
    metadata = [("authorization", f"Bearer {token}")]

    async def run(target: str) -> float:
        async with grpc.aio.insecure_channel(target) as channel:
            stub = explanation_pb2_grpc.ExplanationServiceStub(channel)
            left = iter(range(calls))

            async def caller() -> None:
                for _ in left:
                    await stub.Explain(request, metadata=metadata, timeout=60)

            await stub.Explain(request, metadata=metadata, timeout=60)
            started = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(concurrency)))
            return (time.perf_counter() - started) / calls * 1000

    async def all_rounds() -> None:
        for _ in range(rounds):
            for name, server in servers.items():
                found[name].append(await run(server.target))

    try:
        asyncio.run(all_rounds())
    finally:
        for server in servers.values():
            server.stop()
    medians = {name: statistics.median(times) for name, times in found.items()}
    return {
        "concurrency": concurrency,
        "calls_each": calls * rounds,
        "ms_per_call_with_ledger": round(medians["with"], 3),
        "ms_per_call_without": round(medians["without"], 3),
        "ms_for_metering": round(medians["with"] - medians["without"], 3),
    }


def main() -> None:
    """Runs one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("licenses", "revoke", "metering"))
    parser.add_argument("--most", type=int, default=1_000_000, help="licenses in the store at last")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = f"sqlite:///{folder / 'licenses.db'}"
        if options.what == "licenses":
            result = licenses(url, (10, 10_000, options.most), checks=3000)
        else:
            world = World.make(folder, url)
            if options.what == "revoke":
                result = revoke(world, servers=3, times=5)
            else:
                result = metering(world, calls=500, concurrency=32, rounds=5)
            world.store.close()
    record(options.what, {"what": options.what, "database": "sqlite", **result})


if __name__ == "__main__":
    main()
