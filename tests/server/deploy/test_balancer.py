"""The configuration of HAProxy is one that HAProxy takes, and its health check is gRPC's."""

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue

CONFIGURATION = Path(__file__).parents[3] / "deploy" / "haproxy.cfg"
TEXT = CONFIGURATION.read_text("utf-8")
SENT = b"".join(bytes.fromhex(one) for one in re.findall(r"send-binary ([0-9a-f]+)", TEXT))
PROGRAM = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")


@pytest.mark.skipif(PROGRAM is None, reason="HAProxy is not installed here")
def test_haproxy_takes_the_configuration():
    servers = {f"KEYLOCK_{number}": f"127.0.0.1:{9000 + number}" for number in (1, 2, 3)}
    command = [PROGRAM, "-c", "-f", str(CONFIGURATION)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **servers}, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr


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
