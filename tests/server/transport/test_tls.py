"""TLS: encrypted calls, client certificates, and clear errors for files that do not fit."""

import grpc
import pytest

from keylock.errors import ServiceError
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc
from keylock_server.transport.tls import load_credentials


def get_model(port: int, credentials: grpc.ChannelCredentials | None) -> str:
    target = f"localhost:{port}"
    channel = grpc.insecure_channel(target) if credentials is None else grpc.secure_channel(target, credentials)
    with channel:
        stub = explanation_pb2_grpc.ExplanationServiceStub(channel)
        return stub.GetModel(pb.GetModelRequest(), timeout=5).model.name


def test_calls_are_encrypted(start_server, tls_files):
    calls = start_server(tls_certificate=tls_files / "server.pem", tls_key=tls_files / "server.key")
    roots = (tls_files / "server.pem").read_bytes()
    assert get_model(calls.server.port, grpc.ssl_channel_credentials(roots)) == "tiny"
    for credentials in (None, grpc.ssl_channel_credentials((tls_files / "client.pem").read_bytes())):
        with pytest.raises(grpc.RpcError) as caught:
            get_model(calls.server.port, credentials)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_client_certificates_are_demanded(start_server, tls_files):
    calls = start_server(
        tls_certificate=tls_files / "server.pem",
        tls_key=tls_files / "server.key",
        tls_client_ca=tls_files / "client.pem",
    )
    roots = (tls_files / "server.pem").read_bytes()
    own = ((tls_files / "client.key").read_bytes(), (tls_files / "client.pem").read_bytes())
    assert get_model(calls.server.port, grpc.ssl_channel_credentials(roots, *own)) == "tiny"
    with pytest.raises(grpc.RpcError) as caught:
        get_model(calls.server.port, grpc.ssl_channel_credentials(roots))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("certificate", "key", "client_ca", "match"),
    [
        ("missing.pem", "server.key", None, "missing.pem"),
        ("server.key", "server.key", None, "no PEM certificate"),
        ("server.pem", "server.pem", None, "no PEM private key"),
        ("server.pem", "client.key", None, "belong together"),
        ("server.pem", "server.key", "server.key", "holds no PEM certificate"),
    ],
)
def test_files_that_do_not_fit_are_explained(tls_files, certificate, key, client_ca, match):
    with pytest.raises(ServiceError, match=match):
        load_credentials(tls_files / certificate, tls_files / key, None if client_ca is None else tls_files / client_ca)


def replace_with(tls_files, folder, name):
    for suffix in ("pem", "key"):
        (folder / f"live.{suffix}").write_bytes((tls_files / f"{name}.{suffix}").read_bytes())


def test_new_files_are_taken_up_and_bad_ones_are_not(start_server, tls_files, tmp_path, server_log):
    replace_with(tls_files, tmp_path, "server")
    calls = start_server(tls_certificate=tmp_path / "live.pem", tls_key=tmp_path / "live.key", tls_reload_s=0.000001)
    old, new = (grpc.ssl_channel_credentials((tls_files / f"{name}.pem").read_bytes()) for name in ("server", "client"))
    assert get_model(calls.server.port, old) == "tiny"
    # Half replaced, as they are for a moment.
    (tmp_path / "live.pem").write_bytes((tls_files / "client.pem").read_bytes())
    assert get_model(calls.server.port, old) == "tiny"
    assert "the last good ones stay" in server_log.text
    replace_with(tls_files, tmp_path, "client")
    assert get_model(calls.server.port, new) == "tiny"
    with pytest.raises(grpc.RpcError):
        get_model(calls.server.port, old)
    (tmp_path / "live.key").unlink()
    assert get_model(calls.server.port, new) == "tiny"
