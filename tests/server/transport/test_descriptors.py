"""descriptors.py: a server without descriptors for more callers says so to each of them, and keeps nobody waiting."""

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from keylock.inference import inference_pb2, inference_pb2_grpc
from keylock_server.transport.descriptors import check_descriptors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of open files are set as on Linux")

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from keylock.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def serve(vendor, tmp_path):
    running = []

    def begin(soft, hard):
        command = [sys.executable, "-W", "error", "-c", LIMITED.format(soft=soft, hard=hard)]
        command += ["serve", str(vendor.bundle), "--port", "0", "--json", "--key-file", str(vendor.key_file)]
        command += ["--issuer", str(vendor.issuer_file), "--license-store", f"sqlite:///{tmp_path / 'licenses.db'}"]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | {"HOME": str(tmp_path)}
            )
        running.append(process)
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        return json.loads("".join(lines)) if lines else None, process

    yield begin
    for process in running:
        process.terminate()
        process.communicate(timeout=60)


def call(channel):
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    began = time.monotonic()
    try:
        ready = stub.ServerReady(inference_pb2.ServerReadyRequest(), timeout=15).ready
    except grpc.RpcError as error:
        return error.code(), time.monotonic() - began
    return ready, time.monotonic() - began


def test_callers_beyond_the_descriptors_are_refused_at_once(serve, tmp_path):
    described, _ = serve(64, 64)
    assert described is not None, (tmp_path / "log").read_text()
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    channels = [grpc.insecure_channel(described["target"], options=options) for _ in range(80)]
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(call, channels))
    outcomes = [outcome for outcome, _ in found]
    assert set(outcomes) == {True, grpc.StatusCode.UNAVAILABLE}
    assert outcomes.count(True) >= 4
    assert max(seconds for _, seconds in found) < 10
    # Who is connected goes on being served, and whoever leaves makes room.
    assert call(channels[outcomes.index(True)])[0] is True
    for channel in channels:
        channel.close()
    deadline = time.monotonic() + 20
    while True:
        with grpc.insecure_channel(described["target"], options=options) as channel:
            if call(channel)[0] is True:
                break
        assert time.monotonic() < deadline
    assert "raise the limit" in (tmp_path / "log").read_text()


def test_limit_is_raised_as_far_as_it_may_be(serve, tmp_path):
    _, process = serve(64, 4096)
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert re.search(r"Max open files +4096 +4096", limits)
    assert "raise the limit" not in (tmp_path / "log").read_text()


def test_server_with_too_few_descriptors_does_not_start(serve, tmp_path):
    described, process = serve(32, 32)
    assert (described, process.wait(timeout=60)) == (None, 7)
    assert "ulimit -n" in (tmp_path / "log").read_text()


def test_few_descriptors_are_a_problem(monkeypatch):
    assert check_descriptors() is None
    monkeypatch.setattr("keylock_server.transport.descriptors._used_and_limit", lambda: (60, 64))
    assert "60 of 64" in check_descriptors()
