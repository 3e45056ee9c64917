#!/usr/bin/env bash
# The asyncio health service of grpcio-health-checking forgets all watchers of a service when one of them goes away.
#
# Versions: grpcio-health-checking 1.81.1, grpcio 1.85.3, Python 3.11. Date: 2026-11-29.
# One would guess: `Watch` of `grpc_health.v1.health.aio.HealthServicer` tells every watcher of a change, until that
#   watcher goes away itself.
# What is true: the watchers of a service share one condition, and whoever goes away deletes it for all. Those that are
#   left wait on it and hear of no change any more, not even that the server shuts down.
# Why our users meet it: load balancers and clients watch a server's health, and one of them restarts. The others go on
#   sending calls to a server that leaves.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    grpcio==1.85.3 grpcio-health-checking==1.81.1
cd "$place"
"$place/venv/bin/python" - <<'PY'
import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

STATUS = health_pb2.HealthCheckResponse
PATIENCE_S = 5


async def heard(watcher):
    """Return the next status that a watcher is told, or None where it is told nothing for some seconds."""
    try:
        message = await asyncio.wait_for(asyncio.shield(watcher), PATIENCE_S)
    except TimeoutError:
        return None
    return STATUS.ServingStatus.Name(message.status)


async def main():
    server, servicer = grpc.aio.server(), health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await servicer.set("pictures", STATUS.SERVING)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch
        stays, leaves = (watch(health_pb2.HealthCheckRequest(service="pictures")) for _ in range(2))
        for call in (stays, leaves):
            assert (await call.read()).status == STATUS.SERVING
        next_one = asyncio.ensure_future(stays.read())
        await servicer.set("pictures", STATUS.NOT_SERVING)
        with_both = await heard(next_one)
        print(f"both watch, the status changes: the first one is told {with_both}")
        await leaves.read()
        leaves.cancel()
        while servicer._server_watchers:  # until the server has seen that it went away
            await asyncio.sleep(0.05)
        next_one = asyncio.ensure_future(stays.read())
        await servicer.set("pictures", STATUS.SERVING)
        alone = await heard(next_one)
        print(f"the other one went away, the status changes: the first one is told {alone}")
        stays.cancel()
    await server.stop(None)
    assert with_both == "NOT_SERVING", "watchers are not told of a change at all now"
    assert alone is None, "a watcher is told of changes now though another one went away"


asyncio.run(main())
PY
echo "as described"
