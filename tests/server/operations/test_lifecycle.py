"""The life of a server: health, limits, overload, deadlines, draining, signals."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import helper, numpy_helper
from PIL import Image
from sqlalchemy import text
from support import details_of, scrape, wait_for

from keylock.bundle import ExplainerEntry, write_bundle
from keylock.inference import inference_pb2
from keylock.store import LicenseStore
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc


@pytest.fixture(scope="module")
def slow_images() -> list[pb.Image]:
    """Images that take a second or more to decode and little to send."""
    buffer = io.BytesIO()
    Image.new("RGB", (5000, 5000), (9, 9, 9)).save(buffer, "PNG")
    return [pb.Image(encoded=buffer.getvalue())] * 4


def detail(error: grpc.RpcError, kind):
    return details_of(error)[kind.__name__]


def test_health_answers_for_the_server_and_for_each_service(calls):
    stub = health_pb2_grpc.HealthStub(calls.channel)
    for service in ("", "inference.GRPCInferenceService", "keylock.v1.ExplanationService", "keylock.v1.LicenseService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == 1
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nothing"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_full_queue_says_when_to_come_again(start_server, tiny, slow_images):
    calls = start_server(max_images=4, queue=4)
    image = tiny.tensor_image(tiny.images(1)[0])
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(calls.explain, *slow_images)
        until = time.monotonic() + 10
        while calls.server.parts.batchers.held == 0 and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(grpc.RpcError) as caught:
            calls.explain(image)
        error = caught.value
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert detail(error, error_details_pb2.ErrorInfo).reason == "OVERLOADED"
        assert detail(error, error_details_pb2.RetryInfo).retry_delay.nanos > 0
        assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"].isdigit()
        assert slow.result().results
    assert calls.explain(image).results


def test_too_large_a_message_is_refused_and_the_server_goes_on(start_server, tiny):
    calls = start_server(max_message_bytes=100_000)
    with pytest.raises(grpc.RpcError) as caught:
        calls.explain(pb.Image(encoded=bytes(200_000)))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert calls.explain(tiny.tensor_image(tiny.images(1)[0])).results


def test_limits_of_images_are_settings(start_server, slow_images):
    calls = start_server(max_image_pixels=1_000_000, max_images=1)
    with pytest.raises(grpc.RpcError) as caught:
        calls.explain(slow_images[0])
    assert "at most 1,000,000" in caught.value.details()
    with pytest.raises(grpc.RpcError) as caught:
        calls.explain(*slow_images[:2])
    assert "at most 1 " in caught.value.details()


def test_a_fault_becomes_internal_with_an_id_and_no_text(start_server, vendor, tiny, tmp_path, server_log):
    nodes, constants = tiny.prediction_nodes()
    # The table has three rows, so that the class 3 makes the runtime fail.
    nodes += [
        helper.make_node("Max", ["target", "zero"], ["chosen"]),
        helper.make_node("Gather", ["table", "chosen"], ["map"], axis=0),
    ]
    constants += [
        numpy_helper.from_array(np.zeros(1, np.int64), "zero"),
        numpy_helper.from_array(np.ones((3, 8, 8), np.float32), "table"),
    ]
    files = vendor.content().files | {"graphs/fine.onnx": tiny.graph(nodes, constants, explains=True)}
    content = vendor.content(files=files, explainers=(ExplainerEntry(name="frail", graph="graphs/fine.onnx"),))
    write_bundle(tmp_path / "frail.klb", content, signing_key=vendor.signing_key)
    calls = start_server(bundle=tmp_path / "frail.klb", key_file=None, keyless=True, open_targets=True)
    image = tiny.tensor_image(tiny.images(1)[0])
    with pytest.raises(grpc.RpcError) as caught:
        calls.explain(image, target_index=3)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    error_id = detail(caught.value, error_details_pb2.ErrorInfo).metadata["error_id"]
    assert error_id in caught.value.details()
    assert "Gather" not in str(caught.value)
    assert error_id in server_log.text
    assert "runtime.py" in server_log.text
    assert "Gather" not in server_log.text
    assert calls.explain(image, target_index=2).results


def test_stop_lets_running_calls_finish_and_takes_no_new_ones(start_server, tiny, slow_images):
    calls = start_server()
    statuses = []

    def watch():
        stub = health_pb2_grpc.HealthStub(calls.channel)
        try:
            statuses.extend(a.status for a in stub.Watch(health_pb2.HealthCheckRequest(service="")))
        except grpc.RpcError:
            return

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(calls.explain, *slow_images)
        wait_for(lambda: statuses and calls.server.parts.running.count)
        stopping = calls.stop(drain_s=60)
        wait_for(lambda: statuses[-1] == health_pb2.HealthCheckResponse.NOT_SERVING)
        with pytest.raises(grpc.RpcError) as caught:
            calls.explain(tiny.tensor_image(tiny.images(1)[0]))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert len(slow.result().results) == len(slow_images)
        # The watcher is still there and does not hold the server up.
        stopping.result(timeout=30)
    watcher.join(timeout=10)
    assert statuses[-1] == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_server_that_leaves_takes_calls_until_balancers_have_noticed(start_server, tiny):
    calls, image = start_server(notice_s=3.0), tiny.tensor_image(tiny.images(1)[0])
    began, stopping = time.monotonic(), calls.stop(drain_s=20)
    health = health_pb2_grpc.HealthStub(calls.channel).Check
    while health(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING:
        time.sleep(0.01)
    assert calls.explain(image).results
    assert not stopping.done()
    stopping.result(timeout=30)
    assert time.monotonic() - began >= 3
    with pytest.raises(grpc.RpcError):
        calls.explain(image)


def test_a_call_that_is_not_counted_yet_when_a_server_stops_is_answered(start_server, tiny, monkeypatch):
    """As it happens where a machine is so busy that a call waits for its handler for longer than the server settles."""
    calls, image = start_server(), tiny.tensor_image(tiny.images(1)[0])
    model, running = calls.server.model, calls.server.parts.running
    real, begun = type(model).explain, threading.Event()

    def explain(self, *arguments, **options):
        begun.set()
        time.sleep(0.7)
        return real(self, *arguments, **options)

    async def idle():
        return None

    monkeypatch.setattr(type(model), "explain", explain)
    monkeypatch.setattr(running, "idle", idle)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(calls.explain, image)
        assert begun.wait(10)
        stopping = calls.stop(drain_s=20)
        assert answer.result(timeout=20).results
    stopping.result(timeout=20)


def test_a_server_that_leaves_counts_as_one_that_uses_its_store_until_its_last_call(start_server, vendor, tmp_path):
    url = f"sqlite:///{tmp_path / 'own.db'}"
    calls, store = start_server(notice_s=3.0, license_store=url), LicenseStore(url)

    def marks():
        with store.database.transaction() as connection:
            return connection.execute(text("SELECT count(*) FROM server_marks")).scalar()

    stopping = calls.stop(drain_s=20)
    health = health_pb2_grpc.HealthStub(calls.channel).Check
    while health(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING:
        time.sleep(0.01)
    assert marks() == 1
    stopping.result(timeout=30)
    assert marks() == 0
    store.close()


def test_a_server_that_is_told_to_hurry_gives_no_notice(start_server):
    calls, began = start_server(notice_s=60), time.monotonic()
    calls.stop(drain_s=0).result(timeout=30)
    assert time.monotonic() - began < 30


def command(vendor, *arguments: str) -> list[str]:
    keys = ["--key-file", str(vendor.key_file), "--issuer", str(vendor.issuer_file)]
    ports = ["--port", "0", "--metrics-port", "0"]
    return [sys.executable, "-m", "keylock", "serve", str(vendor.bundle), *ports, *keys, "--json", *arguments]


def read_document(process: subprocess.Popen) -> dict[str, Any]:
    """What a server prints when it answers."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "}\n":
            return json.loads("".join(lines))
    raise AssertionError(process.stderr.read())


def until_taken_up(printed: dict[str, Any]) -> None:
    """Waits until a server has images of a call."""
    wait_for(lambda: "\nkeylock_pending_images 0.0\n" not in scrape(printed["metrics_port"]))


def until_leaving(channel: grpc.Channel) -> None:
    """Waits until a server has said that it stops."""
    with suppress(grpc.RpcError):
        check = health_pb2_grpc.HealthStub(channel).Check
        wait_for(lambda: check(health_pb2.HealthCheckRequest()).status != health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.usefixtures("heard_hangups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_serve_drains_on_a_signal_and_exits_with_zero(vendor, tiny, slow_images, tmp_path, number):
    ready = tmp_path / "ready"
    arguments = ["--ready-file", str(ready), "--license-store", f"sqlite:///{tmp_path / 'licenses.db'}"]
    environment = os.environ | {"HOME": str(tmp_path)}
    process = subprocess.Popen(
        command(vendor, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        printed = read_document(process)
        with grpc.insecure_channel(ready.read_text().strip()) as channel, ThreadPoolExecutor(1) as pool:
            stub = explanation_pb2_grpc.ExplanationServiceStub(channel)
            slow = pool.submit(stub.Explain, pb.ExplainRequest(images=slow_images))
            until_taken_up(printed)
            process.send_signal(number)
            assert len(slow.result(timeout=60).results) == len(slow_images)
        output, log = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, output) == (0, ""), log
    assert printed["model"] == "tiny"
    assert printed["key_id"] == vendor.key.id
    assert not ready.exists()
    assert "stopping" in log
    # Nothing but the server's own log lines: no noise from ONNX Runtime, gRPC or asyncio, and one warning.
    (foreign,) = [line for line in log.splitlines() if " INFO keylock_server" not in line]
    assert "only_torch is not served" in foreign


def test_second_signal_ends_the_draining(vendor, slow_images, tmp_path):
    ready = tmp_path / "ready"
    environment = os.environ | {"HOME": str(tmp_path)}
    process = subprocess.Popen(
        command(vendor, "--ready-file", str(ready)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        printed = read_document(process)
        with grpc.insecure_channel(ready.read_text().strip()) as channel:
            stub = explanation_pb2_grpc.ExplanationServiceStub(channel)
            slow = stub.Explain.future(pb.ExplainRequest(images=slow_images * 8))
            until_taken_up(printed)
            process.send_signal(signal.SIGINT)
            until_leaving(channel)
            assert not slow.done()
            process.send_signal(signal.SIGINT)
            with pytest.raises(grpc.RpcError):
                slow.result(timeout=30)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, log


def test_serve_needs_no_torch(vendor, tmp_path):
    program = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'captum', 'onnx', 'safetensors'): sys.modules[name] = None\n"
        "import asyncio\n"
        "from keylock_server import ServerSettings, start\n"
        "async def main():\n"
        "    server = await start(ServerSettings.load(bundle=sys.argv[1], port=0, key_file=sys.argv[2]))\n"
        "    print(server.model.holds_key)\n"
        "    await server.stop(drain_s=0)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(vendor.bundle), str(vendor.key_file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


def test_serving_in_a_thread(vendor, tmp_path):
    # In a process of its own, because this one has its event loop with grpc.aio already.
    program = (
        "import sys, threading, grpc\n"
        "from keylock.v1 import explanation_pb2 as pb, explanation_pb2_grpc\n"
        "from keylock_server import ServerSettings, serving\n"
        "for _ in range(2):\n"
        "    with serving(ServerSettings.load(bundle=sys.argv[1], port=0, key_file=sys.argv[2])) as server:\n"
        "        with grpc.insecure_channel(server.target) as channel:\n"
        "            stub = explanation_pb2_grpc.ExplanationServiceStub(channel)\n"
        "            print(stub.GetModel(pb.GetModelRequest(), timeout=10).model.name)\n"
        "try:\n"
        "    with serving(ServerSettings.load(bundle='missing.klb', port=0)): pass\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
        "print([t.name for t in threading.enumerate() if t.name == 'keylock-server'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(vendor.bundle), str(vendor.key_file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["tiny", "tiny", "BundleError", "[]"], done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_license_store_lets_nobody_through(start_server, vendor, tiny, tmp_path, server_log):
    from keylock.store import LicenseStore

    store = LicenseStore(f"sqlite:///{tmp_path / 'l.db'}")
    store.close()
    calls = start_server(license_store=f"sqlite:///{tmp_path / 'l.db'}")
    for file in tmp_path.glob("l.db*"):
        file.write_bytes(b"garbage" * 1000)
    image = tiny.tensor_image(tiny.images(1)[0])
    with pytest.raises(grpc.RpcError) as caught:
        calls.explain(image, token=vendor.grant().token)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "l.db" not in str(caught.value)
    assert calls.explain(image).results[0].keyed is False


def test_server_ready_is_false_while_it_drains(start_server):
    calls = start_server()
    request = inference_pb2.ServerReadyRequest()
    assert calls.inference.ServerReady(request).ready
    calls.stop().result(timeout=30)
    with pytest.raises(grpc.RpcError):
        calls.inference.ServerReady(request)
