"""Why no connection came about, in words. gRPC tells it as lines of its libraries, which nobody should have to read.

Each row was seen with gRPC 1.85. What no row knows is told as that no server answers; gRPC's own text of it goes to the
logger `keylock_client` at the level DEBUG.
"""

import logging
import re
from dataclasses import dataclass
from typing import Final

from keylock_client._probing import probe_localhost
from keylock_client._settings import Settings

__all__ = ["explain_unavailable", "speaks_another_protocol", "was_lost"]

_LOG: Final = logging.getLogger("keylock_client")


@dataclass(frozen=True, slots=True)
class _Row:
    """What gRPC says, and what happened and is to be done in words; `encrypted` narrows it to TLS, or to clear text."""

    pattern: str
    words: str
    encrypted: bool | None = None


_ROWS: Final = (
    _Row(
        r"certificate has expired",
        "the certificate of the server at {target} has expired: ask its operator to renew it",
    ),
    _Row(
        r"certificate is not yet valid",
        "the certificate of the server at {target} is not valid yet: check the clock of this machine, or "
        "ask its operator",
    ),
    _Row(
        r"hostname verification|hostname mismatch|peer name .* is not in peer certificate",
        "the certificate of the server at {target} is for another name: connect to the name that it was made for",
    ),
    _Row(
        r"certificate_verify_failed|certificate verify failed|self.signed certificate",
        "the certificate of the server at {target} is signed by nobody who is trusted here: give the file of its "
        "authority with ca=",
    ),
    _Row(
        r"wrong_version_number|wrong version number|http_request",
        "the server at {target} does not speak TLS: check the address, or connect without encryption with tls=False",
    ),
    _Row(
        r"http2 header with status: 50[234]",
        "what divides calls among servers at {target} found none that answered: try again later, or ask its operator",
    ),
    _Row(
        r"missing selected alpn|received http2 header|failed parsing http/2|invalid content-type|http/?1|http status",
        "what answers at {target} is not a keylock server, it speaks another protocol: check the address and the port",
    ),
    _Row(
        r"connection refused",
        "no server listens at {target}: check the address and the port, and that the server is running",
    ),
    _Row(
        r"errors? resolving|domain name not found|dns resolution failed|name or service not known|lookup failed",
        "there is no machine of the name in {target}: check the address",
    ),
    _Row(
        r"no route to host|network is unreachable|host is down|timed? ?out|deadline",
        "the machine at {target} cannot be reached: check the address and the network",
    ),
    _Row(
        r"http proxy|proxy returned",
        "the proxy on the way to {target} lets no connection through: check http_proxy and no_proxy of the environment",
    ),
    _Row(
        r"no such file or directory|permission denied",
        "no server listens at {target}: check the path of the socket, and that the server is running",
    ),
    _Row(
        r"failed to connect.*(socket closed|connection reset|broken pipe|eof)",
        "the server at {target} closes connections in clear text, as one does that expects TLS: connect with "
        "tls=True, and where its authority is your own, give the file of that with ca=",
        encrypted=False,
    ),
    _Row(
        r"failed to connect.*(socket closed|connection reset|broken pipe|eof)|alert certificate|certificate_required",
        "the server at {target} closes the encrypted connection, as one does that asks for a certificate of the "
        "client, or does not take the one it was given: give one that it trusts with certificate= and private_key=",
        encrypted=True,
    ),
    _Row(
        r"socket closed|connection reset|broken pipe|goaway",
        "the connection to the server at {target} was lost: try again, and check that the server is running",
    ),
)


_HTTP: Final = re.compile(r"received http2 header|invalid content-type|http status", re.IGNORECASE)
_LOST: Final = re.compile(
    r"stream removed|rst_stream|end_stream|socket closed|connection reset|broken pipe|goaway", re.IGNORECASE
)
_REFUSED: Final = re.compile("connection refused", re.IGNORECASE)


def explain_unavailable(text: str, settings: Settings) -> str:
    """Say why a server could not be reached.

    Args:
        text: What gRPC says about a call of the status UNAVAILABLE.
        settings: Those of the client.

    Returns:
        One sentence that says what to do, without anything of the text.
    """
    if _REFUSED.search(text):
        found = probe_localhost(settings.target, settings.tls)
        text = text if found is None else found
    for row in _ROWS:
        if row.encrypted in (None, settings.tls is not None) and re.search(row.pattern, text, re.IGNORECASE):
            return row.words.format(target=settings.target)
    _LOG.debug("gRPC says about %s: %s", settings.target, text)
    return (
        f"no keylock server answers at {settings.target}: check the address, that one is running, and whether it "
        "expects TLS"
    )


def speaks_another_protocol(text: str) -> bool:
    """Tell whether gRPC says that a web server has answered, which it does under several statuses.

    Args:
        text: What gRPC says about a call, which has no reason of a keylock server.
    """
    return _HTTP.search(text) is not None


def was_lost(text: str) -> bool:
    """Tell whether gRPC says that a connection, or a stream on it, ended before the call did.

    Balancers do that, each with another status: `CANCELLED`, `UNKNOWN` or `INTERNAL`.

    Args:
        text: What gRPC says about a call, which has no reason of a keylock server.
    """
    return _LOST.search(text) is not None and not speaks_another_protocol(text)
