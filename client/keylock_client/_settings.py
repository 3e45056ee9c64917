"""Where the server is, how to reach it and who is calling: checked once, when a client is made.

The license token is held by `Token`, which shows it to nobody but the call that sends it. A license is sent in clear
text to this machine only: for any other server the connection is encrypted unless `tls=False` says otherwise.
"""

import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from keylock.crypto.key_parsing import damage_is_a_value_error
from keylock.crypto.secrecy import Opaque
from keylock.errors import InputError, LicenseError, LicenseReason
from keylock_client._requests import COMPRESSIONS, MAX_ANSWER_BYTES, MAX_MESSAGE_BYTES, MAX_STREAM_BYTES

__all__ = ["DEFAULT_PORT", "DEFAULT_TARGET", "Settings", "Tls", "Token", "read_environment"]

DEFAULT_PORT = 8470
DEFAULT_TARGET = f"localhost:{DEFAULT_PORT}"

# The largest token a server accepts.
_MAX_TOKEN_BYTES = 8 * 1024
_RETRIES = {
    "maxAttempts": 4,
    "initialBackoff": "0.2s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {"name": [{}], "retryPolicy": _RETRIES},
            {
                "name": [{"service": "keylock.v1.ExplanationService", "method": "ExplainStream"}],
                "retryPolicy": _RETRIES,
                "maxResponseMessageBytes": MAX_STREAM_BYTES,
            },
        ]
    }
)
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # The server says what it accepts.
    ("grpc.max_send_message_length", -1),
    # The same message, with the same request id, is sent again only when the server did not take it up, or is going
    # away: repeating it is safe, and the server may ask for a pause. Retries count against the deadline of the call.
    ("grpc.enable_retries", 1),
    ("grpc.service_config", _SERVICE_CONFIG),
    # A message that does not fit into this buffer would silently not be retried (the default is 256 KiB).
    ("grpc.per_rpc_retry_buffer_size", MAX_ANSWER_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:")
_LOOPBACK = re.compile(
    r"(dns:/*)?localhost:\d+|(ipv4:|dns:/*)?127(\.\d+){3}:\d+|(ipv6:|dns:/*)?\[(::1|::1%\w+)\]:\d+|unix(-abstract)?:.*"
)


@dataclass(frozen=True, kw_only=True)
class Tls:
    """How to encrypt the connection.

    Attributes:
        ca: PEM file of the authorities to trust; those of gRPC if left out.
        certificate: PEM file of the client's own certificate, for servers that ask for one.
        private_key: PEM file of the private key of `certificate`.
        server_name: The name to expect in the server's certificate, if it differs from the host in the target.
    """

    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    private_key: str | os.PathLike[str] | None = None
    server_name: str | None = None


class Token(Opaque):
    """A license token that does not show itself."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the token, to those who send it, remove it from messages, or read who issued it."""
        return self._text

    def __repr__(self) -> str:
        return "<license token>"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a client was made with.

    Attributes:
        target: `host:port`, or another form of target gRPC knows.
        token: The license, if there is one.
        timeout_s: Seconds each request may take, with its retries.
        tls: How the connection is encrypted; None if it is not.
        model: Name of the model to ask for; empty for the one that is served.
        model_version: Its version; empty for the newest one.
        compression: How answers are compressed; None for what the server is set to.
        exchange_tokens: Whether the license is exchanged for access tokens, which are sent in its place.
    """

    target: str
    token: Token | None = field(repr=False)
    timeout_s: float
    tls: Tls | None
    model: str
    model_version: str = ""
    compression: str | None = None
    exchange_tokens: bool = False

    @classmethod
    def make(
        cls,
        *,
        target: str,
        license: str | os.PathLike[str] | None,
        timeout_s: float,
        tls: Tls | bool | None,
        model: str | None,
        model_version: str | None = None,
        compression: str | None = None,
        exchange_tokens: bool = False,
    ) -> "Settings":
        """Check what a user gave. The arguments are those of `Client`.

        Raises:
            InputError: The target, the timeout, the compression or the TLS options are unusable.
            LicenseError: The license is neither a token nor a file that holds one.
        """
        if compression not in COMPRESSIONS:
            raise InputError(f"compression is {compression!r}: give none, gzip or deflate")
        address = _parse_target(target)
        if tls is None:
            tls = not _LOOPBACK.fullmatch(address)
        return cls(
            target=address,
            token=None if license is None else _read_token(license),
            timeout_s=check_timeout(timeout_s),
            tls=Tls() if tls is True else tls or None,
            model=model or "",
            model_version=model_version or "",
            compression=compression,
            exchange_tokens=exchange_tokens,
        )

    def metadata(self, access: Token | None = None) -> tuple[tuple[str, str], ...]:
        """Returns what is sent with a call that needs a license: an access token, the license, or nothing."""
        token = access or self.token
        return () if token is None else (("authorization", f"Bearer {token.reveal()}"),)

    @property
    def channel_options(self) -> list[tuple[str, str | int]]:
        """Options of the gRPC channel, for the synchronous and the asynchronous stack alike."""
        options: list[tuple[str, str | int]] = [*_CHANNEL_OPTIONS]
        if _LOOPBACK.fullmatch(self.target):
            # gRPC would look for this machine behind the proxy of the environment.
            options.append(("grpc.enable_http_proxy", 0))
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Read the files of the TLS options.

        Returns:
            The credentials, or None for a connection in clear text.

        Raises:
            InputError: A file cannot be read, or one of certificate and private key is missing.
        """
        if self.tls is None:
            return None
        if (self.tls.certificate is None) != (self.tls.private_key is None):
            raise InputError("a client certificate needs its private key and the other way round: give both or none")
        return grpc.ssl_channel_credentials(
            root_certificates=_read_certificates(self.tls.ca),
            private_key=_read_private_key(self.tls.private_key, self.tls.certificate),
            certificate_chain=_read_certificates(self.tls.certificate),
        )


def read_environment(environment: Mapping[str, str], *, ignored: Collection[str] = ()) -> dict[str, object]:
    """Turn environment variables into arguments of `Client`.

    Args:
        environment: Usually `os.environ`. Read are `KEYLOCK_TARGET`, `KEYLOCK_LICENSE` (a token),
            `KEYLOCK_LICENSE_FILE`, `KEYLOCK_TIMEOUT_S`, `KEYLOCK_TLS` (`on`, `off` or `auto`), `KEYLOCK_TLS_CA` and
            `KEYLOCK_MODEL`. Empty ones count as absent.
        ignored: Arguments that are given otherwise: their variables are not even looked at.

    Returns:
        The arguments that are set.

    Raises:
        InputError: A variable has an unusable value, or both forms of the license are set.
    """
    values = {name: text for name, text in environment.items() if name.startswith("KEYLOCK_") and text.strip()}
    readers: dict[str, Callable[[], object]] = {
        "target": lambda: values.get("KEYLOCK_TARGET"),
        "model": lambda: values.get("KEYLOCK_MODEL"),
        "license": lambda: _environment_license(values),
        "timeout_s": lambda: _environment_timeout(values),
        "tls": lambda: _environment_tls(values),
    }
    found = {argument: read() for argument, read in readers.items() if argument not in ignored}
    return {argument: value for argument, value in found.items() if value is not None}


def _environment_license(values: Mapping[str, str]) -> str | Path | None:
    if "KEYLOCK_LICENSE" in values and "KEYLOCK_LICENSE_FILE" in values:
        raise InputError("KEYLOCK_LICENSE and KEYLOCK_LICENSE_FILE are both set: unset one of them")
    if "KEYLOCK_LICENSE_FILE" in values:
        return Path(values["KEYLOCK_LICENSE_FILE"])
    return values.get("KEYLOCK_LICENSE")


def _environment_timeout(values: Mapping[str, str]) -> float | None:
    text = values.get("KEYLOCK_TIMEOUT_S")
    try:
        return None if text is None else check_timeout(float(text))
    except (ValueError, InputError):
        raise InputError(f"KEYLOCK_TIMEOUT_S is {text!r}: set a number of seconds above 0") from None


def _environment_tls(values: Mapping[str, str]) -> Tls | bool | None:
    switch = values.get("KEYLOCK_TLS", "auto").strip().lower()
    if switch not in ("on", "off", "auto"):
        raise InputError(f"KEYLOCK_TLS is {switch!r}: set it to on, off or auto")
    if switch == "off":
        return False
    if "KEYLOCK_TLS_CA" in values:
        return Tls(ca=values["KEYLOCK_TLS_CA"])
    return True if switch == "on" else None


def check_timeout(timeout_s: float) -> float:
    """Return the timeout if it is a number of seconds above zero, or raise `InputError`."""
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not 0 < timeout_s < float("inf"):
        raise InputError(f"timeout_s must be a number of seconds above 0, not {timeout_s!r}")
    return float(timeout_s)


def _parse_target(target: str) -> str:
    text = target.strip() if isinstance(target, str) else ""
    if text.startswith(_SCHEMES):
        return text
    match = re.fullmatch(r"(?P<host>[\w.-]+|\[[0-9A-Fa-f:.%\w]+\])(:(?P<port>\d{1,5}))?", text)
    if match is None or not 0 < int(match["port"] or DEFAULT_PORT) < 65536:
        raise InputError(f"{target!r} is not an address of a server: write host:port, for example {DEFAULT_TARGET}")
    return f"{match['host']}:{match['port'] or DEFAULT_PORT}"


def _read_token(license: str | os.PathLike[str]) -> Token:
    # Licenses are read by models that take a while to load, and many callers have none.
    from keylock.licensing.pem import MAX_FILE_BYTES, read_token, unarmour

    if isinstance(license, str) and not license.strip():
        raise LicenseError(LicenseReason.MALFORMED, "the license is an empty text: give the path of a license file")
    if isinstance(license, str) and _is_token(unarmour(license)):
        return Token(unarmour(license))
    try:
        path = Path(license)
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not a path"
        # A string that is not a path might be a mistyped token: it is not repeated.
        what = f"the license file {os.fspath(license)!r}" if isinstance(license, os.PathLike) else "the license"
        form = "" if isinstance(license, os.PathLike) else " and it is not a token either"
        message = f"{what} cannot be read ({why}){form}: check the path, or ask the vendor for a license"
        raise LicenseError(LicenseReason.MALFORMED, message) from None
    token = read_token(data, name=f"the license file {os.fspath(license)!r}")
    if not _is_token(token):
        message = f"the license file {os.fspath(license)!r} holds no license that a server accepts: it is too long"
        raise LicenseError(LicenseReason.MALFORMED, message)
    return Token(token)


def _is_token(text: str) -> bool:
    from keylock.licensing.pem import is_token

    return len(text) <= _MAX_TOKEN_BYTES and is_token(text)


def _read_certificates(path: str | os.PathLike[str] | None) -> bytes | None:
    """Return the content of a file of certificates, which gRPC would take whatever it is, and fail with each call."""
    from cryptography import x509

    content = _read_pem(path)
    if path is None or content is None:
        return None
    try:
        with damage_is_a_value_error():
            x509.load_pem_x509_certificates(content)
    except ValueError:
        raise InputError(f"{os.fspath(path)!r} holds no PEM certificate: give a file that does for TLS") from None
    return content


def _read_private_key(path: str | os.PathLike[str] | None, certificate: str | os.PathLike[str] | None) -> bytes | None:
    """Return the content of the file of a private key that belongs to a certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content, certified = _read_pem(path), _read_certificates(certificate)
    if path is None or content is None or certified is None:
        return None
    try:
        with damage_is_a_value_error():
            own = load_pem_private_key(content, password=None).public_key()
    except ValueError:
        raise InputError(
            f"{os.fspath(path)!r} holds no PEM private key without a passphrase: give such a one"
        ) from None
    try:
        with damage_is_a_value_error():
            belongs = own == x509.load_pem_x509_certificates(certified)[0].public_key()
    except ValueError:
        raise InputError(
            f"{os.fspath(certificate or path)!r} holds no PEM certificate: give a file that does"
        ) from None
    if not belongs:
        raise InputError(
            f"{os.fspath(path)!r} is not the private key of the certificate: give the two that belong together"
        )
    return content


def _read_pem(path: str | os.PathLike[str] | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {os.fspath(path)!r} for TLS: {error.strerror}") from None
