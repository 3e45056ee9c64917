"""HTTP as part of a server that starts, drains and stops; TLS, workers, and where packages are missing."""

import concurrent.futures
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
from support import wait_for

from keylock.errors import ServiceError
from keylock_server import start
from keylock_server.http import opening
from keylock_server.settings import ServerSettings

INFER = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.0] * 192}]}


def test_calls_finish_and_new_ones_are_refused_when_it_stops(serve_web, monkeypatch):
    web = serve_web()
    model, go, held = web.calls.server.model, threading.Event(), threading.Event()
    predict = model.predict

    def slow(*given, **options):
        held.set()
        go.wait(20)
        return predict(*given, **options)

    monkeypatch.setattr(model, "predict", slow)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(web.post, "/v2/models/tiny/infer", INFER)
        assert held.wait(20)
        stopping = web.calls.stop(drain_s=20)

        def refused():
            try:
                socket.create_connection(("127.0.0.1", web.port), timeout=1).close()
            except OSError:
                return True
            return False

        wait_for(refused)
        assert not stopping.done()
        go.set()
        assert running.result(timeout=20).status == 200
    stopping.result(timeout=20)


def test_it_is_not_ready_where_its_health_says_so(serve_web):
    web = serve_web()
    assert web.get("/v2/health/ready").status == 200
    web.calls.loop_thread.loop.call_soon_threadsafe(web.calls.server._health.service.leave)
    wait_for(lambda: web.get("/v2/health/ready").status == 503)
    assert web.get("/v2/health/ready").plain == {"ready": False}
    assert web.get("/v2/health/live").status == 200


def get(port, context, path="/v2", headers=None):
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=10)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def trusting(tls_files, name, *, shows=None):
    context = ssl.create_default_context(cafile=str(tls_files / f"{name}.pem"))
    if shows is not None:
        context.load_cert_chain(tls_files / f"{shows}.pem", tls_files / f"{shows}.key")
    return context


def test_tls_takes_up_new_files(serve_web, tls_files, tmp_path):
    def replace_with(name):
        for suffix in ("pem", "key"):
            (tmp_path / f"live.{suffix}").write_bytes((tls_files / f"{name}.{suffix}").read_bytes())

    replace_with("server")
    web = serve_web(tls_certificate=tmp_path / "live.pem", tls_key=tmp_path / "live.key", tls_reload_s=0.000001)
    assert get(web.port, trusting(tls_files, "server"))[0] == 200
    replace_with("client")
    assert get(web.port, trusting(tls_files, "client"))[0] == 200
    with pytest.raises(ssl.SSLError):
        get(web.port, trusting(tls_files, "server"))


def test_a_token_bound_to_a_certificate_is_good_with_that_alone(serve_web, tls_files, vendor):
    web = serve_web(
        tls_certificate=tls_files / "server.pem",
        tls_key=tls_files / "server.key",
        tls_client_ca=tls_files / "clients.pem",
    )
    own, other = (trusting(tls_files, "server", shows=name) for name in ("client", "thief"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        get(web.port, trusting(tls_files, "server"))
    connection = http.client.HTTPSConnection("localhost", web.port, context=own, timeout=10)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {vendor.grant().token}"}
    connection.request("POST", "/v1/token", b'{"bind_certificate": true}', headers)
    bound = {"Authorization": f"Bearer {json.loads(connection.getresponse().read())['access_token']}"}
    connection.close()
    assert get(web.port, own, "/v1/license", bound)[0] == 200
    status, problem = get(web.port, other, "/v1/license", bound)
    assert (status, problem["reason"]) == (401, "LICENSE_WRONG_CERTIFICATE")


def test_a_port_in_use_is_named_before_anything_is_opened(web):
    settings = ServerSettings.load(bundle="nowhere.klb", port=0, http_port=web.port, keyless=True)
    with pytest.raises(ServiceError, match=f"{web.port}.*in use"):
        web.calls.loop_thread.run(start(settings))


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(opening, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(ServiceError, match=r"^http_port= needs uvicorn: .*extra http"):
        opening.check_http(ServerSettings.load(bundle="x", http_port=0))
    opening.check_http(ServerSettings.load(bundle="x"))
    monkeypatch.setenv("KEYLOCK_SERVER_HTTP_PORT", "0")
    with pytest.raises(ServiceError, match=r"^http_port needs uvicorn: .*extra http"):
        opening.check_http(ServerSettings.load(bundle="x"))


@pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux")
def test_workers_share_the_port_and_stop(vendor, tmp_path, web):
    command = [sys.executable, "-W", "error", "-m", "keylock", "serve", str(vendor.bundle), "--port", "0", "--json"]
    command += ["--http-port", "0", "--workers", "2", "--key-file", str(vendor.key_file)]
    command += ["--issuer", str(vendor.issuer_file)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | {"HOME": str(tmp_path)}
        )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        assert lines, (tmp_path / "log").read_text()
        port = json.loads("".join(lines))["http_port"]
        for _ in range(12):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/v2/health/ready")
            assert connection.getresponse().status == 200
            connection.close()
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(timeout=60) == 0, (tmp_path / "log").read_text()
        assert time.monotonic() - began < 20
    finally:
        process.kill()
        process.communicate()
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert f"HTTP on 127.0.0.1:{port}" in log
