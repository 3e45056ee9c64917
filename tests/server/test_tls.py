"""TLS: encrypted calls, client certificates, and clear errors for files that do not fit."""

import datetime

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from keylock.errors import ServiceError
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc
from keylock_server.tls import load_credentials

VALID_FROM = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
VALID_TO = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A self-signed certificate for localhost with its key, and a second pair."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(VALID_FROM)
            .not_valid_after(VALID_TO)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    return folder


def get_model(port: int, credentials: grpc.ChannelCredentials | None) -> str:
    target = f"localhost:{port}"
    channel = grpc.insecure_channel(target) if credentials is None else grpc.secure_channel(target, credentials)
    with channel:
        stub = explanation_pb2_grpc.ExplanationServiceStub(channel)
        return stub.GetModel(pb.GetModelRequest(), timeout=5).model.name


def test_calls_are_encrypted(start_server, files):
    calls = start_server(tls_certificate=files / "server.pem", tls_key=files / "server.key")
    roots = (files / "server.pem").read_bytes()
    assert get_model(calls.server.port, grpc.ssl_channel_credentials(roots)) == "tiny"
    for credentials in (None, grpc.ssl_channel_credentials((files / "client.pem").read_bytes())):
        with pytest.raises(grpc.RpcError) as caught:
            get_model(calls.server.port, credentials)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_client_certificates_are_demanded(start_server, files):
    calls = start_server(
        tls_certificate=files / "server.pem", tls_key=files / "server.key", tls_client_ca=files / "client.pem"
    )
    roots = (files / "server.pem").read_bytes()
    own = ((files / "client.key").read_bytes(), (files / "client.pem").read_bytes())
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
def test_files_that_do_not_fit_are_explained(files, certificate, key, client_ca, match):
    with pytest.raises(ServiceError, match=match):
        load_credentials(files / certificate, files / key, None if client_ca is None else files / client_ca)


def replace_with(files, folder, name):
    for suffix in ("pem", "key"):
        (folder / f"live.{suffix}").write_bytes((files / f"{name}.{suffix}").read_bytes())


def test_new_files_are_taken_up_and_bad_ones_are_not(start_server, files, tmp_path, server_log):
    replace_with(files, tmp_path, "server")
    calls = start_server(tls_certificate=tmp_path / "live.pem", tls_key=tmp_path / "live.key", tls_reload_s=0.000001)
    old, new = (grpc.ssl_channel_credentials((files / f"{name}.pem").read_bytes()) for name in ("server", "client"))
    assert get_model(calls.server.port, old) == "tiny"
    # Half replaced, as they are for a moment.
    (tmp_path / "live.pem").write_bytes((files / "client.pem").read_bytes())
    assert get_model(calls.server.port, old) == "tiny"
    assert "the last good ones stay" in server_log.text
    replace_with(files, tmp_path, "client")
    assert get_model(calls.server.port, new) == "tiny"
    with pytest.raises(grpc.RpcError):
        get_model(calls.server.port, old)
    (tmp_path / "live.key").unlink()
    assert get_model(calls.server.port, new) == "tiny"
