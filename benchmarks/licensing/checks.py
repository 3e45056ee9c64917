"""What a license check, a revocation and metering cost in time, on this machine.

python benchmarks/licensing/checks.py licenses        a check with 10, 10,000 and 1,000,000 licenses in the store
python benchmarks/licensing/checks.py revoke          from revoking to the last accepted call, on three servers
python benchmarks/licensing/checks.py metering        throughput with and without the ledger, at concurrency 32
python benchmarks/licensing/checks.py metering --network resnet18:224       the same beside a real explanation
"""

import argparse
import asyncio
import io
import json
import statistics
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import numpy as np
import PIL.Image
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


def metering(
    world: World, request: pb.ExplainRequest, *, calls: int, concurrency: int, rounds: int
) -> dict[str, object]:
    """Times licensed calls to a server with a store and to one without, in turns.

    Without a store nothing is reserved, charged, entered in the audit log or signed; the license is verified and the
    map is computed all the same.
    """
    _, token = world.grant()
    servers = {"with": Server(world, "metered"), "without": Server(world, "unmetered", store=False)}
    wall: dict[str, list[float]] = {"with": [], "without": []}
    cpu: dict[str, list[float]] = {"with": [], "without": []}
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
                before = server.cpu_s
                wall[name].append(await run(server.target))
                cpu[name].append((server.cpu_s - before) / calls * 1000)

    try:
        asyncio.run(all_rounds())
    finally:
        for server in servers.values():
            server.stop()
    ms = {name: statistics.median(times) for name, times in wall.items()}
    cpu_ms = {name: statistics.median(times) for name, times in cpu.items()}
    return {
        "concurrency": concurrency,
        "calls_each": calls * rounds,
        "ms_per_call_with_ledger": round(ms["with"], 3),
        "ms_per_call_without": round(ms["without"], 3),
        "ms_for_metering": round(ms["with"] - ms["without"], 3),
        "share_of_throughput": round(1 - ms["without"] / ms["with"], 4),
        "cpu_ms_per_call_with_ledger": round(cpu_ms["with"], 3),
        "cpu_ms_per_call_without": round(cpu_ms["without"], 3),
        "cpu_ms_for_metering": round(cpu_ms["with"] - cpu_ms["without"], 3),
    }


def network_content(architecture: str, size: int) -> dict[str, object]:
    """Compiles Grad-CAM of a network on random weights: what it computes matters to nobody, how long it takes does."""
    import torch

    from keylock import explainers, models
    from keylock.bundle import Architecture, ExplainerEntry
    from keylock.export import compile_explainer, compile_prediction
    from keylock.imaging.preprocessing import Preprocessing

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = models.create(architecture, num_classes=4).eval()
    shape = (3, size, size)
    layers = models.find_layers(model, torch.zeros(2, *shape))
    grad_cam = next(iter(explainers.make_for(layers, ["grad_cam"])))
    return {
        "preprocessing": Preprocessing(size=(size, size), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        "architecture": Architecture(name=architecture, num_classes=4, module="graph_only"),
        "explainers": (ExplainerEntry(name="grad_cam", graph="graphs/grad_cam.onnx"),),
        "prediction_graph": "graphs/predict.onnx",
        "files": {
            "graphs/predict.onnx": compile_prediction(model, image_shape=shape, num_classes=4),
            "graphs/grad_cam.onnx": compile_explainer(model, grad_cam, image_shape=shape, num_classes=4),
        },
    }


def photograph(size: int) -> pb.Image:
    """A JPEG of smooth colours, as large as such a file is."""
    coarse = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(coarse).resize((size, size)).save(file, "JPEG", quality=90)
    return pb.Image(encoded=file.getvalue())


def main() -> None:
    """Runs one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("licenses", "revoke", "metering"))
    parser.add_argument(
        "--network", default="", help="for metering: explain this, as resnet18:224, and not next to nothing"
    )
    parser.add_argument("--most", type=int, default=1_000_000, help="licenses in the store at last")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        url = f"sqlite:///{folder / 'licenses.db'}"
        if options.what == "licenses":
            result = licenses(url, (10, 10_000, options.most), checks=3000)
        elif options.what == "revoke":
            with World.make(folder, url) as world:
                result = revoke(world, servers=3, times=20)
        else:
            architecture, _, size = options.network.partition(":")
            content = network_content(architecture, int(size)) if architecture else {}
            images = [photograph(int(size)) if architecture else image(1)]
            calls = 200 if architecture else 1000
            with World.make(folder, url, **content) as world:
                result = metering(world, pb.ExplainRequest(images=images), calls=calls, concurrency=32, rounds=7)
            result = {"network": options.network or "next to nothing", **result}
    name = f"{options.what}_{options.network.replace(':', '_')}" if options.network else options.what
    record(name, {"what": options.what, "database": "sqlite", **result})


if __name__ == "__main__":
    main()
