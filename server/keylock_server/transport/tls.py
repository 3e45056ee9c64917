"""TLS credentials, checked before the server starts: gRPC itself only fails each handshake, without saying why.

New files are taken up while the server runs. Files that do not belong together, as they are for a moment while somebody
replaces them one by one, are told in the log, and the last good ones stay.
"""

import logging
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from keylock.crypto.key_parsing import damage_is_a_value_error
from keylock.errors import ServiceError

__all__ = ["load_context", "load_credentials"]

_LOG: Final = logging.getLogger("keylock_server")


def load_credentials(
    certificate: Path, key: Path, client_ca: Path | None, *, reload_s: float = 5.0
) -> grpc.ServerCredentials:
    """Reads the files of a TLS server, now and again before handshakes.

    Args:
        certificate: Certificate chain (PEM), the server's own first.
        key: Its private key (PEM), not encrypted.
        client_ca: Certificates (PEM) that sign those of clients; with it clients must show one.
        reload_s: How long files are taken to be the same without a look, in seconds.

    Raises:
        ServiceError: If a file cannot be read, is not what it should be, or key and certificate do not belong together.
    """
    files = _Files(certificate, key, client_ca, reload_s=reload_s, make=_to_configuration)
    return grpc.dynamic_ssl_server_credentials(
        files.configuration, files.changed, require_client_authentication=client_ca is not None
    )


def load_context(certificate: Path, key: Path, client_ca: Path | None, *, reload_s: float = 5.0) -> ssl.SSLContext:
    """Does for HTTP what `load_credentials` does for gRPC."""

    def make(_chain: bytes, _secret: bytes, roots: bytes | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(certificate, key)
            if roots is not None:
                context.load_verify_locations(cadata=roots.decode("ascii"))
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ValueError):
            raise ServiceError(f"{certificate} and {key} changed while they were read: wait a moment") from None
        return context

    files = _Files(certificate, key, client_ca, reload_s=reload_s, make=make)
    context: ssl.SSLContext = files.configuration

    def take_up(connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        # Called at each handshake, whether or not the caller names a host.
        files.changed()
        if files.configuration is not context:
            connection.context = files.configuration

    context.sni_callback = take_up
    return context


class _Files:
    """The files of a TLS server, watched; `changed` is called before each handshake, by gRPC from its threads."""

    def __init__(
        self,
        certificate: Path,
        key: Path,
        client_ca: Path | None,
        *,
        reload_s: float,
        make: Callable[[bytes, bytes, bytes | None], Any],
    ) -> None:
        self._files, self._reload_s, self._make = (certificate, key, client_ca), reload_s, make
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._marks = self._mark()
        self.configuration = make(*_load(*self._files))

    def changed(self) -> Any:  # noqa: ANN401 - gRPC has no type for its configurations
        """Returns the configuration in new files, or None where there is nothing new that is good."""
        with self._lock:
            if time.monotonic() - self._looked_at < self._reload_s:
                return None
            self._looked_at = time.monotonic()
            marks = self._mark()
            if marks == self._marks:
                return None
            try:
                self.configuration = self._make(*_load(*self._files))
            except ServiceError as error:
                _LOG.error("the files of TLS changed and cannot be used, the last good ones stay: %s", error)
                return None
            self._marks = marks
            _LOG.info("the files of TLS changed and were loaded")
            return self.configuration

    def _mark(self) -> tuple[object, ...]:
        marks: list[object] = []
        for file in self._files:
            try:
                stat = None if file is None else file.stat()
            except OSError:
                stat = None
            marks.append(None if stat is None else (stat.st_mtime_ns, stat.st_ino, stat.st_size))
        return tuple(marks)


def _to_configuration(chain: bytes, secret: bytes, roots: bytes | None) -> Any:  # noqa: ANN401
    return grpc.ssl_server_certificate_configuration([(secret, chain)], root_certificates=roots)


def _load(certificate: Path, key: Path, client_ca: Path | None) -> tuple[bytes, bytes, bytes | None]:
    """Returns chain, key and certificates of authorities (PEM), which belong together.

    Raises:
        ServiceError: If they do not, or one is not what it should be.
    """
    chain, secret = _read(certificate), _read(key)
    try:
        with damage_is_a_value_error():
            certified = x509.load_pem_x509_certificates(chain)[0].public_key()
    except ValueError:
        raise ServiceError(f"{certificate} is no PEM certificate: give the server's certificate chain") from None
    try:
        with damage_is_a_value_error():
            own = serialization.load_pem_private_key(secret, password=None).public_key()
    except ValueError:
        raise ServiceError(f"{key} is no PEM private key without a passphrase: give the server's key") from None
    if own != certified:
        raise ServiceError(f"{key} is not the key of the certificate {certificate}: give the two that belong together")
    roots = None
    if client_ca is not None:
        roots = _read(client_ca)
        try:
            with damage_is_a_value_error():
                x509.load_pem_x509_certificates(roots)
        except ValueError:
            raise ServiceError(f"{client_ca} holds no PEM certificate: give those that sign the clients'") from None
    return chain, secret, roots


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ServiceError(f"cannot read {path}: {error.strerror}") from None
