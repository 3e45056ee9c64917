"""Asks a server how it is, by the health service that all gRPC servers share (`grpc.health.v1`)."""

import os
import time
from typing import Any, Final, Literal, get_args

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from keylock.errors import InputError
from keylock_client._failures import translate
from keylock_client._settings import DEFAULT_TARGET, Settings, Tls, read_environment
from keylock_client.errors import BadAnswerError, ClientError, DeadlineError, OverloadedError, UnreachableError

__all__ = ["Health", "check_health", "wait_until_ready"]

Health = Literal["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"]

_METHOD: Final = "/grpc.health.v1.Health/Check"
_STATUSES: Final[tuple[Health, ...]] = get_args(Health)
_PAUSE_S: Final = 0.2


def check_health(
    target: str | None = None,
    *,
    service: str = "",
    tls: Tls | bool | None = None,
    timeout_s: float = 5.0,
) -> Health:
    """Ask a server, once, whether it is well.

    Args:
        target: Address of the server, `host:port`; left out: that of `KEYLOCK_TARGET`, or of this machine.
        service: Name of one of its services; empty for the server as a whole.
        tls: How the connection is encrypted, as `Client` takes it; left out: as `KEYLOCK_TLS` and `KEYLOCK_TLS_CA` say.
        timeout_s: Seconds the question may take.

    Returns:
        `SERVING` where calls are answered.

    Raises:
        InputError: The target, the timeout or a file is unusable.
        ClientError: The server cannot be reached, knows no such service, or answers what makes no sense.
    """
    settings = _settings(target, tls, timeout_s)
    credentials = settings.channel_credentials()
    options = settings.channel_options
    channel = (
        grpc.insecure_channel(settings.target, options=options)
        if credentials is None
        else grpc.secure_channel(settings.target, credentials, options=options)
    )
    with channel:
        # A wrapper has its value where the messages of the health service have theirs. Answers are taken as bytes,
        # because gRPC logs a traceback when a deserialiser fails.
        call: grpc.UnaryUnaryMultiCallable[StringValue, bytes] = channel.unary_unary(
            _METHOD, request_serializer=lambda message: message.SerializeToString()
        )
        failure: ClientError
        try:
            data = call(StringValue(value=service), timeout=settings.timeout_s)
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.NOT_FOUND:
                return "SERVICE_UNKNOWN"
            failure = translate(error, settings=settings, timeout_s=settings.timeout_s, request_id="")
        else:
            try:
                return _STATUSES[Int32Value.FromString(data).value]
            except (DecodeError, IndexError):
                failure = BadAnswerError(
                    f"the server at {settings.target} sent a health that cannot be read: check that it is "
                    "a keylock server"
                )
    # Raised outside of the handler, so that gRPC's own exception is not even its context.
    raise failure


def wait_until_ready(
    target: str | None = None,
    *,
    service: str = "",
    tls: Tls | bool | None = None,
    timeout_s: float = 5.0,
    wait_s: float = 0.0,
) -> str:
    """Return once a server is well, asking again until then.

    Args:
        target: Address of the server, `host:port`; left out: that of `KEYLOCK_TARGET`, or of this machine.
        service: Name of one of its services; empty for the server as a whole.
        tls: How the connection is encrypted, as `Client` takes it; left out: as `KEYLOCK_TLS` and `KEYLOCK_TLS_CA` say.
        timeout_s: Seconds each question may take.
        wait_s: Seconds to go on asking; 0 asks once.

    Returns:
        The address that was asked.

    Raises:
        InputError: The target, the timeout, a file or the name of the service is unusable.
        UnreachableError: The server was not well in that time; the message says how it was at last.
        ClientError: The server answers what makes no sense.
    """
    end, address = time.monotonic() + wait_s, _settings(target, tls, timeout_s).target
    while True:
        try:
            health = check_health(target, service=service, tls=tls, timeout_s=timeout_s)
        except (UnreachableError, DeadlineError, OverloadedError):
            if time.monotonic() >= end:
                raise
        else:
            if health == "SERVING":
                return address
            if health == "SERVICE_UNKNOWN":
                raise InputError(
                    f"the server at {address} has no service {service!r}: leave it out for the whole server"
                )
            if time.monotonic() >= end:
                raise UnreachableError(
                    f"the server at {address} is not ready ({health}): it starts, drains, or a check fails that its "
                    "log and 'keylock admin status' name"
                )
        time.sleep(min(_PAUSE_S, max(0.0, end - time.monotonic())))


def _settings(target: str | None, tls: Tls | bool | None, timeout_s: float) -> Settings:
    given = {name: value for name, value in {"target": target, "tls": tls}.items() if value is not None}
    found: dict[str, Any] = read_environment(os.environ, ignored=("license", "model", "timeout_s", *given))
    taken = {"target": DEFAULT_TARGET, "tls": None} | found | given
    return Settings.make(license=None, timeout_s=timeout_s, model=None, **taken)
