"""What a servicer and its interceptors ask of gRPC's context, for a call that came over HTTP."""

import ssl
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import grpc

__all__ = ["Aborted", "HttpContext"]

_ENTRIES: Final = frozenset({b"authorization", b"x-request-id", b"traceparent"})

Metadata = Sequence[tuple[str, str | bytes]]


class Aborted(Exception):  # noqa: N818 - it is how a call ends, as in gRPC
    """A call ended with a status.

    Attributes:
        code: The status.
        message: What the caller is told.
        trailers: The trailing metadata, with the details of the status.
    """

    def __init__(self, code: grpc.StatusCode, message: str, trailers: Metadata) -> None:
        super().__init__(code.name)
        self.code, self.message, self.trailers = code, message, dict(trailers)


class HttpContext:
    """Stands for `grpc.aio.ServicerContext`.

    Attributes:
        trailers: The trailing metadata of an answer.
    """

    def __init__(self, scope: Any) -> None:  # noqa: ANN401 - the scope of ASGI has no type
        """Takes the scope of a request; of its headers the license, the request id and the trace count."""
        self.trailers: dict[str, str | bytes] = {}
        self._metadata = tuple(
            (name.decode("ascii"), value.decode("latin-1")) for name, value in scope["headers"] if name in _ENTRIES
        )
        host, port = scope.get("client") or ("", 0)
        self._peer = f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
        self._certificate: bytes | None = scope.get("extensions", {}).get("keylock.certificate")

    def invocation_metadata(self) -> Metadata:
        """Returns the entries that a caller has sent."""
        return self._metadata

    def peer(self) -> str:
        """Returns where the call came from, as gRPC writes it."""
        return self._peer

    def auth_context(self) -> dict[str, list[bytes]]:
        """Returns the certificate that the caller has shown in TLS, if there is one."""
        if self._certificate is None:
            return {}
        return {"x509_pem_cert": [ssl.DER_cert_to_PEM_cert(self._certificate).encode("ascii")]}

    def time_remaining(self) -> None:
        """Returns None: a caller over HTTP names no deadline, and the server's holds."""

    def set_trailing_metadata(self, trailers: Metadata) -> None:
        """Takes the trailing metadata of the answer."""
        self.trailers = dict(trailers)

    def set_compression(self, compression: grpc.Compression) -> None:
        """Does nothing: answers over HTTP are not compressed."""

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Does nothing: headers follow with the answer."""

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """Ends the call with a status.

        Raises:
            Aborted: Always.
        """
        raise Aborted(code, details, trailing_metadata)
