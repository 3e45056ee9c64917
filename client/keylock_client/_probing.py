"""What listens on a port of this machine, asked without gRPC.

The name `localhost` stands for two addresses, of which a server often has one. gRPC tries both and reports the failure
of one of them, which may be the one where nothing listens.
"""

import os
import re
import socket
import ssl
from typing import Final

from keylock_client._settings import Tls

__all__ = ["probe_localhost"]

_TARGET: Final = re.compile(r"(?:dns:/*)?(localhost):(\d+)")
_PATIENCE_S: Final = 0.5
# What a client of HTTP/2 begins with: the preface and empty settings (RFC 9113, section 3.4).
_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


def probe_localhost(target: str, tls: Tls | None) -> str | None:
    """Connect to a port of this machine and see what answers; this takes half a second where nothing does.

    Args:
        target: An address.
        tls: How the connection is encrypted; None where it is not.

    Returns:
        Why nobody can speak gRPC there, in the words of a library; empty where the reason is not found; None for an
        address that is not `localhost`, and where nothing listens.
    """
    found = _TARGET.fullmatch(target)
    if found is None:
        return None
    try:
        connection = socket.create_connection((found[1], int(found[2])), _PATIENCE_S)
    except OSError:
        return None
    with connection:
        try:
            return _greet(connection) if tls is None else _greet_encrypted(connection, tls, found[1])
        except ssl.SSLError as error:
            return str(error)
        except TimeoutError:
            return ""
        except OSError:
            return "failed to connect: connection reset"


def _greet(connection: socket.socket) -> str:
    connection.sendall(_GREETING)
    answer = connection.recv(9)
    if not answer or answer.startswith(b"\x15\x03"):
        # Nothing, or an alert of TLS (RFC 8446, section 6).
        return "failed to connect: socket closed"
    # The fourth byte of a frame is its type; a server begins with its settings, type 4.
    return "" if answer[3:4] == b"\4" else "failed parsing HTTP/2"


def _greet_encrypted(connection: socket.socket, tls: Tls, host: str) -> str:
    context = ssl.create_default_context(cafile=None if tls.ca is None else os.fspath(tls.ca))
    if tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.private_key)
    context.set_alpn_protocols(["h2"])
    with context.wrap_socket(connection, server_hostname=tls.server_name or host) as encrypted:
        if encrypted.selected_alpn_protocol() is None:
            return "missing selected ALPN"
        # A server that wants a certificate says so after the handshake.
        return _greet(encrypted)
