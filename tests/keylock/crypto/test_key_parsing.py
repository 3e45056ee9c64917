"""Files of keys and certificates, mutated: every loader raises an error of keylock's own or loads what is there."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.exceptions import InternalError
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from keylock.bundle import HpkeIdentity
from keylock.bundle.providers.hpke import read_hpke
from keylock.crypto.issuers import load_keys, to_jwks
from keylock.crypto.key_parsing import damage_is_a_value_error
from keylock.crypto.signing import SigningKey, VerifyingKey
from keylock.errors import KeylockError
from keylock.licensing.receipt_keys import ReceiptKey

MUTATIONS = 400


def write_certificate(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(pem)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file of each kind."""
    folder = tmp_path_factory.mktemp("keys")
    signing = SigningKey.generate()
    signing.write(folder / "issuer.pem")
    signing.verifying_key.write(folder / "issuer.pub.pem")
    (folder / "issuers.jwks").write_text(json.dumps(to_jwks([signing.verifying_key])))
    identity = HpkeIdentity.create(folder / "hpke.pem")
    (folder / "hpke.pub.pem").write_bytes(identity.recipient.to_pem())
    now = datetime(2026, 11, 28, tzinfo=UTC)
    ReceiptKey.create(folder / "receipts.pem", signing, not_before=now, expires=now + timedelta(days=1))
    write_certificate(folder)
    return folder


def load_tls(**changed: Path) -> Callable[[Path, Path], Any]:
    def load(files: Path, mutated: Path) -> Any:
        from keylock_server.transport.tls import load_credentials

        given = {"certificate": files / "server.pem", "key": files / "server.key", "client_ca": files / "server.pem"}
        for name in changed:
            given[name] = mutated
        return load_credentials(given["certificate"], given["key"], given["client_ca"], reload_s=1)

    return load


def load_client(name: str) -> Callable[[Path, Path], Any]:
    def load(files: Path, mutated: Path) -> Any:
        from keylock_client import _settings as settings

        if name == "ca":
            return settings._read_certificates(mutated)
        key, certificate = (mutated, files / "server.pem") if name == "key" else (files / "server.key", mutated)
        return settings._read_private_key(key, certificate)

    return load


def load_receipt_key(files: Path, mutated: Path) -> Any:
    certificate = files / "receipts.cert"
    if certificate.is_file():
        (mutated.parent / "mutated.cert").write_bytes(certificate.read_bytes())
    return ReceiptKey.load(mutated)


LOADERS: dict[str, tuple[str, Callable[[Path, Path], Any]]] = {
    "signing key": ("issuer.pem", lambda files, path: SigningKey.load(path)),
    "public key": ("issuer.pub.pem", lambda files, path: VerifyingKey.load(path)),
    "issuers, PEM": ("issuer.pub.pem", lambda files, path: load_keys(path)),
    "issuers, JWKS": ("issuers.jwks", lambda files, path: load_keys(path)),
    "recipient's private key": ("hpke.pem", lambda files, path: read_hpke(path)),
    "recipient's public key": ("hpke.pub.pem", lambda files, path: read_hpke(path)),
    "receipt key": ("receipts.pem", load_receipt_key),
    "TLS certificate": ("server.pem", load_tls(certificate=Path())),
    "TLS key": ("server.key", load_tls(key=Path())),
    "TLS client authorities": ("server.pem", load_tls(client_ca=Path())),
    "client's authorities": ("server.pem", load_client("ca")),
    "client's key": ("server.key", load_client("key")),
    "client's certificate": ("server.pem", load_client("certificate")),
}


def mutated(content: bytes, generator: np.random.Generator) -> bytes:
    """Changes, cuts, doubles or inserts a few bytes; half of the time letters for letters, so that base64 stays."""
    data = bytearray(content)
    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
    for _ in range(int(generator.integers(1, 4))):
        place = int(generator.integers(len(data)))
        kind = generator.integers(6)
        if kind < 3:
            data[place] = letters[int(generator.integers(len(letters)))]
        elif kind == 3:
            data[place] = int(generator.integers(256))
        elif kind == 4:
            del data[place : place + int(generator.integers(1, 30))]
        else:
            data[place:place] = data[place : place + int(generator.integers(1, 30))]
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize("name", LOADERS)
def test_mutated_files_raise_errors_of_keylock_alone(name, files, tmp_path):
    file, load = LOADERS[name]
    content, generator = (files / file).read_bytes(), np.random.default_rng(12)
    place = tmp_path / "mutated.pem"
    place.write_bytes(content)
    load(files, place)
    refused = 0
    for _ in range(MUTATIONS):
        place.write_bytes(mutated(content, generator))
        try:
            load(files, place)
        except KeylockError:
            refused += 1
    assert refused > MUTATIONS / 4


@pytest.mark.parametrize("name", LOADERS)
def test_whatever_the_library_raises_is_an_error_of_keylock(name, files, tmp_path, monkeypatch):
    """One mutation in very many ends in OpenSSL's own error; here each does."""

    def fails(*_: object, **__: object) -> None:
        raise InternalError("unknown OpenSSL error", [])

    file, load = LOADERS[name]
    place = tmp_path / "mutated.pem"
    place.write_bytes((files / file).read_bytes())
    if "JWKS" in name:
        return
    for module in (serialization, x509):
        for function in ("load_pem_private_key", "load_pem_public_key", "load_pem_x509_certificates"):
            if hasattr(module, function):
                monkeypatch.setattr(module, function, fails)
    with pytest.raises(KeylockError) as caught:
        load(files, place)
    assert "OpenSSL" not in str(caught.value)


def test_the_text_of_openssl_goes_nowhere():
    with pytest.raises(ValueError, match="InternalError") as caught, damage_is_a_value_error():
        raise InternalError("unknown OpenSSL error", [])
    assert caught.value.__suppress_context__
    assert "OpenSSL" not in str(caught.value)
