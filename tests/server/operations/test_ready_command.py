"""`keylock admin ready`: 0 where a server answers calls, 7 where it does not, and a sentence that says why."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from keylock.cli import main
from keylock_client import BadAnswerError, InputError, Tls, UnreachableError, check_health, wait_until_ready

HEALTH = "grpc.health.v1.Health"
EXPLANATIONS = "keylock.v1.ExplanationService"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in ("KEYLOCK_TARGET", "KEYLOCK_TLS", "KEYLOCK_TLS_CA"):
        monkeypatch.delenv(name, raising=False)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def answering(health):
    """A server whose health is these bytes."""
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: health)
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, handlers=(grpc.method_handlers_generic_handler(HEALTH, {"Check": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


def test_a_server_that_serves_is_ready(calls, capsys):
    assert check_health(calls.server.target) == "SERVING"
    assert main(["admin", "ready", "--server", calls.server.target, "--service", EXPLANATIONS]) == 0
    assert capsys.readouterr().out == f"{EXPLANATIONS} at {calls.server.target} is ready\n"


def test_the_environment_names_the_server(calls, monkeypatch, capsys):
    monkeypatch.setenv("KEYLOCK_TARGET", calls.server.target)
    monkeypatch.setenv("KEYLOCK_TLS", "off")
    assert main(["admin", "ready"]) == 0
    assert capsys.readouterr().out == f"the server at {calls.server.target} is ready\n"


def test_where_nobody_listens_it_ends_with_a_sentence(capsys):
    target = f"localhost:{free_port()}"
    assert main(["admin", "ready", "--server", target]) == 7
    captured = capsys.readouterr()
    assert captured.out == ""
    assert (
        captured.err
        == f"error: no server listens at {target}: check the address and the port, and that the server is running\n"
    )


def test_a_server_that_is_not_well_is_not_ready():
    with answering(b"\x08\x02") as target, pytest.raises(UnreachableError, match=r"not ready \(NOT_SERVING\)"):
        wait_until_ready(target, wait_s=0.5)


def test_a_service_that_is_not_there_is_a_mistake(calls):
    assert check_health(calls.server.target, service="keylock.v1.Other") == "SERVICE_UNKNOWN"
    with pytest.raises(InputError, match=r"no service 'keylock\.v1\.Other'"):
        wait_until_ready(calls.server.target, service="keylock.v1.Other", wait_s=30)


def test_it_waits_for_a_server_that_starts(start_server):
    port, began = free_port(), time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_until_ready, f"127.0.0.1:{port}", wait_s=60)
        assert not waiting.done()
        started = start_server(port=port)
        assert waiting.result(timeout=60) == started.server.target
    assert time.monotonic() - began < 60


def test_certificates_are_shown_where_they_are_asked(start_server, tls_files):
    settings = {"tls_certificate": "server.pem", "tls_key": "server.key", "tls_client_ca": "clients.pem"}
    served = start_server(**{name: tls_files / file for name, file in settings.items()})
    target = f"localhost:{served.server.port}"
    arguments = ["admin", "ready", "--server", target, "--tls-ca", str(tls_files / "server.pem")]
    assert main(arguments) == 7
    own = ["--tls-certificate", str(tls_files / "client.pem"), "--tls-key", str(tls_files / "client.key")]
    assert main([*arguments, *own]) == 0
    assert (
        check_health(target, tls=Tls(ca=tls_files / "server.pem", certificate=own[1], private_key=own[3])) == "SERVING"
    )


@pytest.mark.parametrize("answer", [b"\xff", b"\x08\x63"])
def test_an_answer_that_makes_no_sense_is_an_error(answer):
    with answering(answer) as target, pytest.raises(BadAnswerError, match="health that cannot be read"):
        check_health(target)


def test_a_server_that_does_not_answer_takes_no_longer_than_it_may():
    silent = socket.create_server(("127.0.0.1", 0))
    try:
        began = time.monotonic()
        assert main(["admin", "ready", "--server", f"127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.5"]) == 7
        assert time.monotonic() - began < 10
    finally:
        silent.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--server", "no port"], "is not an address"),
        (["--timeout", "0"], "timeout_s must be"),
        (["--no-tls", "--tls-ca", "ca.pem"], "exclude each other"),
        (["--tls-ca", "missing.pem"], "missing.pem"),
    ],
)
def test_mistakes_end_in_one_line(arguments, words, capsys):
    assert main(["admin", "ready", *arguments]) == 3
    assert words in capsys.readouterr().err
