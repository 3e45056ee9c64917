"""Where servers listen: addresses, tried beforehand so that what is wrong with them can be said."""

import errno
import os
import socket
from pathlib import Path

import grpc

from keylock.errors import ServiceError
from keylock.files.atomic import PUBLIC, replacing

__all__ = ["bind", "check_address", "forget_ready_file", "join", "listen", "reserve", "write_ready_file"]


def check_address(host: str, port: int) -> None:
    """Tries an address with a socket of its own: gRPC says neither why an address fails nor keeps quiet about it.

    Raises:
        ServiceError: If it cannot be listened on.
    """
    address = join(host, port)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise ServiceError(f"the host {host!r} has no address here: choose another host=") from None
    family, kind, protocol, _, where = found[0]
    try:
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":  # As gRPC does; elsewhere the option would hide that the port is in use.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except PermissionError:
        raise ServiceError(f"not allowed to listen on {address}: choose a port above 1023 (port=)") from None
    except OSError as error:
        why = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise ServiceError(f"cannot listen on {address}, {why}: choose another port=, or 0 for a free one") from None


def reserve(host: str, port: int) -> socket.socket:
    """Takes an address for several processes of this program, each of which listens on it by itself.

    Args:
        host: Address.
        port: Port; 0 takes a free one.

    Returns:
        A socket that holds the address until it is closed; no connection comes to it, because it does not listen.

    Raises:
        ServiceError: If the address cannot be had.
    """
    check_address(host, port)
    try:
        return bind(host, port, reuse_port=True)
    except OSError as error:
        raise ServiceError(f"cannot listen on {join(host, port)}, {error.strerror}: choose another port=") from None


def bind(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    """Returns a socket at an address, which does not listen yet.

    Args:
        host: Address.
        port: Port; 0 takes a free one.
        reuse_port: Whether other processes bind to the same address.

    Raises:
        OSError: If the address cannot be had.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, where = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(where)
    except OSError:
        bound.close()
        raise
    return bound


def listen(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    """Lets a server listen.

    Args:
        server: Which.
        host: Address.
        port: Port; 0 takes a free one.
        credentials: Those of TLS; None listens without.

    Returns:
        The port.

    Raises:
        ServiceError: If it cannot.
    """
    address = join(host, port)
    try:
        if credentials is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, credentials)
    except RuntimeError:
        bound = 0
    if not bound:
        raise ServiceError(f"cannot listen on {address}: choose another host= or port=")
    return bound


def join(host: str, port: int) -> str:
    """Returns `host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def write_ready_file(path: Path, target: str) -> None:
    """Writes where a server answers into a file, all of it at once.

    Raises:
        ServiceError: If it cannot be written.
    """
    try:
        with replacing(path, mode=PUBLIC) as unfinished:
            unfinished.write_text(f"{target}\n", "utf-8")
    except OSError as error:
        raise ServiceError(f"cannot write the ready file {path}: {error.strerror}") from None


def forget_ready_file(path: Path | None) -> None:
    """Removes the ready file, where there is one: of a server that stops, or of one before that was killed.

    Raises:
        ServiceError: If it cannot be removed.
    """
    if path is None:
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ServiceError(f"cannot write the ready file {path}: {error.strerror}") from None
