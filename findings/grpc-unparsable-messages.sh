#!/usr/bin/env bash
# A server of grpc.aio answers UNKNOWN to a message that it cannot parse; the same servicer on grpc.server, INTERNAL.
#
# Versions: grpcio 1.85.3, grpcio-health-checking 1.81.1, protobuf 6.33.6, Python 3.11. Date: 2026-11-29.
# One would guess: both servers of one package answer alike, INTERNAL as gRPC's own table of status codes has it for
#   what the server cannot parse, or INVALID_ARGUMENT, because the caller is at fault; and neither is an error of the
#   server.
# What is true: a health check whose message is cut is INTERNAL from grpc.server and UNKNOWN from grpc.aio.server, in
#   other words each, and both write an error with a traceback to the log for every such message.
# Why our users meet it: health checks are open to everybody. A scanner on the port fills the log with tracebacks, and
#   UNKNOWN counts as a fault of the server wherever a mesh or a dashboard reads statuses.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    grpcio==1.85.3 grpcio-health-checking==1.81.1 protobuf==6.33.6
cd "$place"
"$place/venv/bin/python" - <<'PY'
import asyncio
import logging
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2_grpc

METHOD = "/grpc.health.v1.Health/Check"
CUT = b"\x0a\x05key"  # A string of five bytes, of which three are there.


class Records(logging.Handler):
    def __init__(self):
        super().__init__(logging.ERROR)
        self.tracebacks = []

    def emit(self, record):
        self.tracebacks.append(record.exc_info is not None)


records = Records()
logging.getLogger().addHandler(records)
logging.getLogger().handlers[:] = [records]


def ask(port):
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(METHOD)(CUT, timeout=20)
        except grpc.RpcError as error:
            return error.code(), error.details()
    raise AssertionError("a cut message was answered")


def threaded():
    server = grpc.server(futures.ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    answer = ask(port)
    server.stop(0)
    return answer


async def asynchronous():
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    answer = await asyncio.to_thread(ask, port)
    await server.stop(0)
    return answer


seen = {}
for name, answer in (("grpc.server", threaded), ("grpc.aio.server", lambda: asyncio.run(asynchronous()))):
    records.tracebacks.clear()
    code, details = answer()
    seen[name] = code, list(records.tracebacks)
    print(f"{name}: {code.name}: {details!r}; errors in the log: {len(records.tracebacks)}")

assert seen["grpc.server"] == (grpc.StatusCode.INTERNAL, [True]), "the threaded server answers otherwise now"
assert seen["grpc.aio.server"] == (grpc.StatusCode.UNKNOWN, [True]), "the asynchronous server answers otherwise now"
PY
echo "as described"
