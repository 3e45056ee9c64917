#!/usr/bin/env bash
# HAProxy's HTTP checks of a gRPC server are wrong both ways: with GET it is down when it is well, by default up whatever.
#
# Versions: HAProxy 2.6.12 (Debian 2.6.12-1+deb12u4), grpcio 1.85.3, grpcio-health-checking 1.81.1, Python 3.11.
#   Date: 2026-11-30.
# One would guess: `option httpchk` with `proto h2` tells a gRPC server that serves from one whose health service says
#   NOT_SERVING, or at least fails for all of them.
# What is true: gRPC resets the stream of a GET, so every server is down. It answers OPTIONS, the method that a bare
#   `option httpchk` sends, with HTTP status 200 and the error in `grpc-status`, so every server is up, also one that
#   says NOT_SERVING. A body with the message of the health service cannot be sent, because it begins with bytes of zero.
# Why our users meet it: a fleet behind such a check loses all servers at once, or goes on sending calls to servers that
#   leave. What works is `option tcp-check` with the frames of HTTP/2 written out.
set -euo pipefail
haproxy=$(PATH=$PATH:/usr/sbin command -v haproxy) || { echo "HAProxy is not installed: apt-get install haproxy"; exit 1; }
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$haproxy" -v | head -n 1
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    grpcio==1.85.3 grpcio-health-checking==1.81.1
cat >"$place/check.py" <<'PY'
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

haproxy, place = sys.argv[1:]
CHECKS = {
    "GET": "option httpchk GET /grpc.health.v1.Health/Check",
    "bare": "option httpchk",
}


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def serve(status):
    server, servicer = grpc.server(ThreadPoolExecutor(4)), health.HealthServicer()
    servicer.set("", status)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def status_of(check, port):
    """Return what HAProxy says of a server after some seconds of checks, and why."""
    statistics = free_port()
    with open(f"{place}/haproxy.cfg", "w") as file:
        file.write(
            "defaults\n mode http\n timeout connect 5s\n timeout client 5s\n timeout server 5s\n timeout check 5s\n"
            f"frontend s\n bind 127.0.0.1:{statistics}\n stats enable\n stats uri /\n"
            f"backend b\n {check}\n server s 127.0.0.1:{port} proto h2 check inter 500ms fall 2 rise 1\n"
        )
    process = subprocess.Popen([haproxy, "-db", "-f", f"{place}/haproxy.cfg"], stderr=subprocess.DEVNULL)
    try:
        time.sleep(8)
        with urllib.request.urlopen(f"http://127.0.0.1:{statistics}/;csv", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    finally:
        process.kill()
        process.wait()
    names = lines[0].removeprefix("# ").split(",")
    [row] = [row for row in (dict(zip(names, line.split(","))) for line in lines[1:]) if row["svname"] == "s"]
    return row["status"].split()[0], f"{row['check_status']} {row['check_code']}".strip()


well, well_port = serve(health_pb2.HealthCheckResponse.SERVING)
ill, ill_port = serve(health_pb2.HealthCheckResponse.NOT_SERVING)
found = {}
for name, check in CHECKS.items():
    for state, port in (("SERVING", well_port), ("NOT_SERVING", ill_port)):
        found[name, state], why = status_of(check, port)
        print(f"{check}: a server that says {state} is {found[name, state]} ({why})", flush=True)
well.stop(None)
ill.stop(None)
assert found["GET", "SERVING"] == "DOWN", "a server that is well passes a check by GET now"
assert found["bare", "SERVING"] == "UP", "a bare check fails now"
assert found["bare", "NOT_SERVING"] == "UP", "a bare check tells a server that is not well now"
PY
cd "$place"
GRPC_VERBOSITY=NONE "$place/venv/bin/python" "$place/check.py" "$haproxy" "$place"
echo "as described"
