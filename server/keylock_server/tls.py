"""TLS credentials, checked before the server starts: gRPC itself only fails each handshake, without saying why."""

from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from keylock.errors import ServiceError

__all__ = ["load_credentials"]


def load_credentials(certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    """Reads the files of a TLS server.

    Args:
        certificate: Certificate chain (PEM), the server's own first.
        key: Its private key (PEM), not encrypted.
        client_ca: Certificates (PEM) that sign those of clients; with it clients must show one.

    Raises:
        ServiceError: If a file cannot be read, is not what it should be, or key and certificate do not belong together.
    """
    chain, secret = _read(certificate), _read(key)
    try:
        first = x509.load_pem_x509_certificate(chain)
    except ValueError:
        raise ServiceError(f"{certificate} is no PEM certificate: give the server's certificate chain") from None
    try:
        private = serialization.load_pem_private_key(secret, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ServiceError(f"{key} is no PEM private key without a passphrase: give the server's key") from None
    if private.public_key() != first.public_key():
        raise ServiceError(f"{key} is not the key of the certificate {certificate}: give the two that belong together")
    roots = None
    if client_ca is not None:
        roots = _read(client_ca)
        try:
            x509.load_pem_x509_certificates(roots)
        except ValueError:
            raise ServiceError(f"{client_ca} holds no PEM certificate: give those that sign the clients'") from None
    return grpc.ssl_server_credentials([(secret, chain)], roots, require_client_auth=roots is not None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ServiceError(f"cannot read {path}: {error.strerror}") from None
