"""Whether the time of an answer over HTTP tells who has a license: calls with and without one by turns, compared.

    python benchmarks/serving/http_timing.py

A server with a store and receipts answers explanations of a network that costs next to nothing, so that what a license
takes is most of a call. One caller asks on one connection, with and without a license in random order, in each form
that answers have. What is told is the probability that a licensed answer takes longer than another one, .5 where
nothing can be told, and its 95 % interval (Hanley and McNeil, Radiology 143, 1982).
"""

import argparse
import base64
import json
import math
import os
import random
import shlex
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from processes import free_port
from processor import describe_processor

sys.path.append(str(Path(__file__).resolve().parents[1] / "licensing"))

from world import ROOT, Server, World, image, record

from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc

_WARM_UP = 50

Ask = Callable[[bool], None]


class Connection:
    """A connection that speaks HTTP/1.1 and stays."""

    def __init__(self, port: int) -> None:
        """Connects."""
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def asking(self, path: str, body: bytes, media: str, token: str) -> Ask:
        """Returns what asks, with the license or without it, and returns when the whole answer is there."""
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n"
        sent = {
            licensed: (head + (f"Authorization: Bearer {token}\r\n" if licensed else "") + "\r\n").encode() + body
            for licensed in (False, True)
        }

        def ask(licensed: bool) -> None:
            self._socket.sendall(sent[licensed])
            found = b""
            while b"\r\n\r\n" not in found:
                found += self._socket.recv(65536)
            told, _, content = found.partition(b"\r\n\r\n")
            assert told.startswith(b"HTTP/1.1 200 "), found
            length = int(told.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            while len(content) < length:
                content += self._socket.recv(65536)

        return ask


def ways(server: Server, http_port: int, token: str) -> dict[str, Ask]:
    """Returns how explanations are asked for, by the form of the answer."""
    web = Connection(http_port)
    message = pb.ExplainRequest(images=[image(1)])
    tensor = message.images[0].tensor
    encoded = {"dtype": "DATA_TYPE_FLOAT32", "shape": [*tensor.shape], "data": base64.b64encode(tensor.data).decode()}
    text = json.dumps({"images": [{"tensor": encoded}]}).encode()
    stub = explanation_pb2_grpc.ExplanationServiceStub(grpc.insecure_channel(server.target))

    def by_grpc(licensed: bool) -> None:
        stub.Explain(message, metadata=[("authorization", f"Bearer {token}")] if licensed else [])

    name = "/keylock.v1.ExplanationService/Explain"
    return {
        "grpc": by_grpc,
        "http, protobuf": web.asking(name, message.SerializeToString(), "application/x-protobuf", token),
        "http, json": web.asking("/v1/explain", text, "application/json", token),
        "http, json with lists": web.asking("/v1/explain?maps=lists", text, "application/json", token),
    }


def compare(asked: dict[str, Ask], calls: int, draw: random.Random) -> dict[str, Any]:
    """Returns what times tell, by form; forms take turns."""
    times: dict[str, dict[bool, list[float]]] = {form: {True: [], False: []} for form in asked}
    for number in range(_WARM_UP + calls):
        for form, ask in asked.items():
            for licensed in draw.sample((True, False), 2):
                began = time.perf_counter()
                ask(licensed)
                if number >= _WARM_UP:
                    times[form][licensed].append(time.perf_counter() - began)
    return {form: told(by[True], by[False]) for form, by in times.items()}


def told(licensed: list[float], other: list[float]) -> dict[str, Any]:
    """Returns how well two samples of times can be told apart."""
    ranks = {value: rank for rank, value in enumerate(sorted(licensed + other), start=1)}
    count = len(licensed)
    larger = (sum(ranks[value] for value in licensed) - count * (count + 1) / 2) / (count * len(other))
    first, second = larger / (2 - larger), 2 * larger**2 / (1 + larger)
    spread = (larger * (1 - larger) + (count - 1) * (first + second - 2 * larger**2)) / (count * len(other))
    error = 1.96 * math.sqrt(spread)
    return {
        "licensed_takes_longer": round(larger, 3),
        "interval": [round(larger - error, 3), round(larger + error, 3)],
        "median_ms": {
            "licensed": round(statistics.median(licensed) * 1000, 3),
            "other": round(statistics.median(other) * 1000, 3),
        },
    }


def main() -> None:
    """Measures and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=3000, help="with a license and without one, in each form")
    parser.add_argument("--no-padding", action="store_true", help="let calls without a license wait for nothing")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results" / "serving" / "http_timing.json"
    )
    options = parser.parse_args()
    load_before, http_port = round(os.getloadavg()[0], 1), free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with World.make(folder, f"sqlite:///{folder / 'licenses.db'}") as world:
            _, token = world.grant()
            settings = {"http_port": http_port, "pad_response_times": not options.no_padding}
            server = Server(world, "timing", settings=settings)
            try:
                found = compare(ways(server, http_port, token), options.calls, random.Random(options.seed))
            finally:
                server.stop()
    result = {
        "hardware": f"{describe_processor()}, {os.cpu_count()} cores",
        "command": shlex.join(["python", "benchmarks/serving/http_timing.py", *sys.argv[1:]]),
        "calls": options.calls,
        "load_average": [load_before, round(os.getloadavg()[0], 1)],
        "forms": found,
    }
    record(options.results.stem, result, folder=options.results.parent)


if __name__ == "__main__":
    main()
