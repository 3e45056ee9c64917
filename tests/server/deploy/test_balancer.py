"""Balancers take their configurations, HAProxy asks for health as gRPC has it, and neither repeats a call."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "benchmarks" / "fleet"), str(ROOT / "benchmarks" / "serving")]

balancer = pytest.importorskip("balancer", reason="balancers are started by the benchmark of fleets")

CONFIGURATION = ROOT / "deploy" / "haproxy.cfg"
NGINX = (ROOT / "deploy" / "nginx.conf").read_text("utf-8")
TEXT = CONFIGURATION.read_text("utf-8")
SENT = b"".join(bytes.fromhex(one) for one in re.findall(r"send-binary ([0-9a-f]+)", TEXT))
PROGRAM = balancer.HAProxy.where()

# Says that it is well, writes down each other call, and dies of it.
DYING = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
import grpc

class Dying(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.answer(details.method))

    def answer(self, method):
        if method.endswith("/Check"):
            return bytes([8, 1])
        with open(sys.argv[1], "a") as file:
            file.write(method + " ")
        os._exit(1)

server = grpc.server(ThreadPoolExecutor(4), handlers=(Dying(),))
server.add_insecure_port("127.0.0.1:" + sys.argv[2])
server.start()
server.wait_for_termination()
"""


@pytest.fixture(params=sorted(balancer.BALANCERS))
def kind(request):
    """Every balancer that is installed here."""
    kind = balancer.BALANCERS[request.param]
    if kind.where() is None:
        pytest.skip(f"{request.param} is not installed here")
    return kind


def test_a_call_that_a_server_has_taken_up_is_sent_to_no_other(kind, tmp_path):
    """It may have been charged, and only callers know whether it has a request id."""
    taken, ports = tmp_path / "taken", [str(balancer.free_port()) for _ in range(3)]
    servers = [subprocess.Popen([sys.executable, "-c", DYING, str(taken), port]) for port in ports]
    try:
        until = time.monotonic() + 30
        for port in ports:
            with socket.socket() as probe:
                while probe.connect_ex(("127.0.0.1", int(port))) and time.monotonic() < until:
                    time.sleep(0.05)
        between = kind(tmp_path, [f"127.0.0.1:{port}" for port in ports], least=3)
        try:
            with grpc.insecure_channel(between.target, options=[("grpc.enable_retries", 0)]) as channel:
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary("/keylock.v1.ExplanationService/Explain")(b"", timeout=20)
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert taken.read_text().split() == ["/keylock.v1.ExplanationService/Explain"]
        finally:
            between.stop()
    finally:
        for server in servers:
            server.kill()
            server.wait()


@pytest.mark.skipif(PROGRAM is None, reason="HAProxy is not installed here")
def test_haproxy_takes_the_configuration():
    servers = {f"KEYLOCK_{number}": f"127.0.0.1:{9000 + number}" for number in (1, 2, 3)}
    command = [PROGRAM, "-c", "-f", str(CONFIGURATION)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **servers}, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr


@pytest.mark.skipif(balancer.Nginx.where() is None, reason="nginx is not installed here")
def test_nginx_takes_the_configuration(tmp_path):
    # Names are looked up when it starts, and those of the file are names of containers.
    text = re.sub(r"keylock-(\d):8470", r"127.0.0.1:900\1", NGINX).replace("/tmp/", f"{tmp_path}/")  # noqa: S108
    (tmp_path / "nginx.conf").write_text(text)
    command = [balancer.Nginx.where(), "-t", "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "[warn]" not in run.stderr


def test_both_leave_a_quiet_stream_alone_for_longer_than_servers_do():
    from keylock_server import ServerSettings

    said = re.findall(r"timeout (?:client|server) (\S+)", TEXT)
    said += re.findall(r"(?:client_body_timeout|grpc_(?:read|send)_timeout) (\S+?);", NGINX)
    assert said == ["5m"] * 5
    assert ServerSettings.model_fields["deadline_s"].default < 300


def test_the_check_asks_for_the_health_of_the_whole_server():
    assert SENT.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    frames, rest = [], SENT[24:]
    while rest:
        length = int.from_bytes(rest[:3], "big")
        frames.append((rest[3], rest[9 : 9 + length]))
        rest = rest[9 + length :]
    assert [kind for kind, _ in frames] == [4, 1, 0]
    assert b"/grpc.health.v1.Health/Check" in frames[1][1]
    message = StringValue(value="").SerializeToString()
    assert frames[2][1] == b"\0" + len(message).to_bytes(4, "big") + message


def test_a_real_server_answers_the_check_as_it_is_expected(calls):
    expected = bytes.fromhex(re.search(r"expect binary ([0-9a-f]+)", TEXT)[1])
    with socket.create_connection(("127.0.0.1", calls.server.port), timeout=10) as connection:
        connection.sendall(SENT)
        got = b""
        while expected not in got:
            part = connection.recv(4096)
            assert part, got
            got += part
