#!/usr/bin/env bash
# Behind HAProxy, a stream of gRPC loses the server's status, or is ended for being quiet though pings go both ways.
#
# Versions: HAProxy 2.6.12 (Debian 2.6.12-1+deb12u4), grpcio 1.85.3, Python 3.11. Date: 2026-11-30.
# One would guess: gRPC's keepalive (pings of HTTP/2) keeps a quiet stream alive through a balancer that speaks HTTP/2
#   on both sides; a status that a server ends a stream with arrives; and REFUSED_STREAM means what RFC 9113 says, that
#   nothing was processed.
# What is true: `timeout server` counts data alone, whatever pings there are on either side, and the stream ends with
#   UNKNOWN. Where a server ends a stream while the client still sends, HAProxy resets the stream behind the server's
#   trailers, and gRPC reports CANCELLED; the trailing metadata have arrived all the same. Where a server dies of a
#   request on a connection that was used before, the client is told REFUSED_STREAM, although the server had the request.
# Why our users meet it: streams of images pause while an image is computed; a quota that is spent, or a server that
#   leaves, ends a stream and says why; and a call that was charged must not be repeated as if nobody had seen it.
set -euo pipefail
haproxy=$(PATH=$PATH:/usr/sbin command -v haproxy) || { echo "HAProxy is not installed: apt-get install haproxy"; exit 1; }
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$haproxy" -v | head -n 1
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check grpcio==1.85.3
cat >"$place/server.py" <<'PY'
import asyncio
import os
import sys

import grpc


class Methods(grpc.GenericRpcHandler):
    def service(self, details):
        name = details.method.rpartition("/")[2]
        kind = grpc.stream_stream_rpc_method_handler if name in ("Quiet", "Early") else grpc.unary_unary_rpc_method_handler
        return kind(getattr(self, name))

    async def Quiet(self, requests, context):
        async for _ in requests:
            await context.write(b"begun")
            await asyncio.sleep(30)

    async def Early(self, requests, context):
        async for _ in requests:
            await context.write(b"begun")
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the quota is spent", (("why", "quota"),))

    async def Warm(self, request, context):
        return b"warm"

    async def Die(self, request, context):
        with open(sys.argv[2], "a") as file:
            file.write("taken up\n")
        os._exit(1)


async def main():
    pings = [("grpc.keepalive_time_ms", 500), ("grpc.http2.min_ping_interval_without_data_ms", 100)]
    server = grpc.aio.server(options=[*pings, ("grpc.http2.max_ping_strikes", 0)], handlers=[Methods()])
    server.add_insecure_port("127.0.0.1:" + sys.argv[1])
    await server.start()
    await server.wait_for_termination()


asyncio.run(main())
PY
cat >"$place/client.py" <<'PY'
import asyncio
import socket
import subprocess
import sys
import time

import grpc

haproxy, place = sys.argv[1:]


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


def wait_for(port):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nobody listens on {port}")


async def ended(call):
    """Return how a stream ended: status, text, trailing metadata."""
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details(), dict(error.trailing_metadata() or ())
    return "OK", "", {}


async def one_and_wait():
    yield b"image"
    await asyncio.sleep(30)


async def ask(target, taken):
    pings = [("grpc.keepalive_time_ms", 500), ("grpc.http2.max_pings_without_data", 0), ("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(target, options=pings) as channel:

        async def only_one():
            yield b"image"

        began = time.monotonic()
        code, text, _ = await ended(channel.stream_stream("/a.B/Quiet")(only_one(), timeout=20))
        took = time.monotonic() - began
        print(f"quiet for longer than `timeout server` of 3 s, pings every .5 s: {code} after {took:.1f} s ({text})")
        assert code == "UNKNOWN", "another status now"
        assert took < 10, "pings count now"
        code, text, trailing = await ended(channel.stream_stream("/a.B/Early")(one_and_wait(), timeout=20))
        print(f"the server says RESOURCE_EXHAUSTED while the client still sends: {code} ({text}), metadata {trailing}")
        assert code == "CANCELLED", "the server's status arrives now"
        assert trailing.get("why") == "quota", "the trailing metadata are lost as well now"
        for _ in range(3):
            await channel.unary_unary("/a.B/Warm")(b"", timeout=10)
        try:
            await channel.unary_unary("/a.B/Die")(b"", timeout=10)
        except grpc.aio.AioRpcError as error:
            text = error.details()
        count = len(open(taken).readlines())
        print(f"the server dies of a call on a connection that was used before: {text}; calls taken up: {count}")
        assert count == 1, "the call is repeated by itself now"
        assert "error code 7" in text, "no REFUSED_STREAM any more"


back, front = free_port(), free_port()
with open(f"{place}/haproxy.cfg", "w") as file:
    file.write(
        "defaults\n mode http\n timeout connect 2s\n timeout client 60s\n timeout server 3s\n"
        f"frontend f\n bind 127.0.0.1:{front} proto h2\n default_backend b\n"
        f"backend b\n server s 127.0.0.1:{back} proto h2\n"
    )
processes = [subprocess.Popen([sys.executable, f"{place}/server.py", back, f"{place}/taken"])]
try:
    wait_for(back)
    processes.append(subprocess.Popen([haproxy, "-db", "-f", f"{place}/haproxy.cfg"], stderr=subprocess.DEVNULL))
    wait_for(front)
    asyncio.run(ask(f"127.0.0.1:{front}", f"{place}/taken"))
finally:
    for process in processes:
        process.kill()
        process.wait()
PY
cd "$place"
"$place/venv/bin/python" "$place/client.py" "$haproxy" "$place"
echo "as described"
