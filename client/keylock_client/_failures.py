"""From what gRPC reports about a failed call to an error of `keylock_client.errors`. Every status has a row.

What the server says about a refusal is passed on, cleaned: one line, of limited length, without the license token. It
is never trusted to be well formed.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

import grpc
from google.protobuf.any_pb2 import Any as PackedMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from keylock.errors import LicenseReason
from keylock.text.printable import printable
from keylock_client._connections import explain_unavailable, speaks_another_protocol, was_lost
from keylock_client._requests import MAX_MESSAGE_BYTES, MAX_STREAM_BYTES
from keylock_client._settings import Settings, Token
from keylock_client.errors import (
    BadAnswerError,
    ClientError,
    ConnectionLostError,
    DeadlineError,
    LicenseRefusedError,
    OverloadedError,
    QuotaSpentError,
    RateLimitedError,
    RequestIdReusedError,
    RequestRefusedError,
    ServerFaultError,
    SimilarQueriesError,
    UnreachableError,
    UnsupportedError,
    Violation,
)

__all__ = ["translate", "translate_status"]

_DOMAIN = "keylock"
_DETAILS_KEY = "grpc-status-details-bin"
_MAX_TEXT = 600
_OVER_LIMIT = re.compile(r"[Rr]eceived message larger than max \(\d+ vs\.? (\d{1,12})\)")
# Fields of a request, and the arguments that they come from.
_ARGUMENTS = {
    "answer.map_dtype": "map_dtype",
    "map_dtype": "map_dtype",
    "model_name": "model",
    "model_version": "model_version",
    "target_index": "target",
    "target_label": "target",
}
_FIELDS = re.compile(rf"(?<![\w.])({'|'.join(re.escape(one) for one in _ARGUMENTS)})(?![\w=])")


@dataclass(frozen=True, slots=True)
class _Failure:
    """What is known about a failed call: status name, cleaned text, and the rich details if there are any."""

    code: str
    text: str
    reason: str
    facts: dict[str, str]
    violations: tuple[Violation, ...]
    retry_after_s: float | None
    settings: Settings
    timeout_s: float
    request_id: str

    @property
    def target(self) -> str:
        return self.settings.target


def translate(
    error: grpc.RpcError, *, settings: Settings, timeout_s: float, request_id: str, access: Token | None = None
) -> ClientError:
    """Turn an exception of gRPC, from either stack, into one of ours.

    Args:
        error: What the call raised.
        settings: Those of the client.
        timeout_s: Seconds the call was allowed to take.
        request_id: The id of the request, if it had one.
        access: The access token that was sent in place of the license, if one was.

    Returns:
        The error to raise.
    """
    # Both stacks raise errors that are also calls; the type stubs know that of one of them only.
    code = error.code().name if isinstance(error, (grpc.Call, grpc.aio.AioRpcError)) else "UNKNOWN"
    text = error.details() if isinstance(error, (grpc.Call, grpc.aio.AioRpcError)) else type(error).__name__
    trailers = error.trailing_metadata() if isinstance(error, (grpc.Call, grpc.aio.AioRpcError)) else ()
    sent = _sent(trailers or ())
    if sent.code:
        # A balancer that resets a stream behind the server's last words makes gRPC report the reset in their place.
        code, text = _name(sent.code), sent.message
    failure = _read(
        code,
        text or "",
        list(sent.details),
        _secrets(settings, access),
        settings=settings,
        timeout_s=timeout_s,
        request_id=request_id,
    )
    return _choose(failure)


def translate_status(
    status: status_pb2.Status, *, settings: Settings, timeout_s: float, access: Token | None
) -> ClientError:
    """Turn the failure of one image of a stream into an error; the arguments are as of `translate`."""
    return _choose(
        _read(
            _name(status.code),
            status.message,
            list(status.details),
            _secrets(settings, access),
            settings=settings,
            timeout_s=timeout_s,
            request_id="",
        )
    )


def _secrets(settings: Settings, access: Token | None) -> tuple[str, ...]:
    return tuple(token.reveal() for token in (settings.token, access) if token is not None)


def _choose(failure: _Failure) -> ClientError:
    if failure.reason in {reason.value for reason in LicenseReason}:
        return LicenseRefusedError(
            failure.text,
            reason=LicenseReason(failure.reason),
            field=next((violation.field for violation in failure.violations), None),
            code=failure.code,
            request_id=failure.request_id,
        )
    if not failure.reason and speaks_another_protocol(failure.text):
        return _unavailable(failure)
    return (_REASONS.get(failure.reason) or _ROWS.get(failure.code, _fault))(failure)


def _refused(failure: _Failure) -> ClientError:
    text = failure.text or f"the server at {failure.target} refuses the request ({failure.code})"
    return RequestRefusedError(text, violations=failure.violations, code=failure.code, request_id=failure.request_id)


def _precondition(failure: _Failure) -> ClientError:
    return _unsupported(failure) if failure.reason == "NO_KEY" else _refused(failure)


def _unavailable(failure: _Failure) -> ClientError:
    if failure.reason:
        return _overloaded(failure)
    text = explain_unavailable(failure.text, failure.settings)
    return UnreachableError(text, code=failure.code, request_id=failure.request_id)


def _cancelled(failure: _Failure) -> ClientError:
    """Take what no keylock server says by itself for what it mostly is: whatever stands in between ended the call."""
    if failure.reason or not was_lost(failure.text):
        return _fault(failure)
    text = (
        f"the connection to the server at {failure.target} was lost before the answer had come: try again with the "
        "same request id, which costs nothing where it was charged"
    )
    return ConnectionLostError(text, code=failure.code, request_id=failure.request_id)


def _exhausted(failure: _Failure) -> ClientError:
    # gRPC itself refuses messages over the limit of either side with this status and without details. The limits of
    # this side are known.
    over = _OVER_LIMIT.search(failure.text)
    unfolded = "Decompressed message larger than max" in failure.text
    if unfolded or (over is not None and int(over[1]) in (MAX_MESSAGE_BYTES, MAX_STREAM_BYTES)):
        # Requests are not compressed, so that only an answer can unfold to more than is taken; gRPC stops in time.
        most = MAX_MESSAGE_BYTES if over is None else int(over[1])
        text = (
            f"the server's answer is larger than the {most:,} bytes that are taken: ask for fewer images at "
            "once, or for maps of another type (map_dtype=)"
        )
        return BadAnswerError(text, code=failure.code, request_id=failure.request_id)
    if "larger than max" in failure.text:
        text = f"an image is larger than the server at {failure.target} accepts: send a smaller one"
        return RequestRefusedError(text, code=failure.code, request_id=failure.request_id)
    return _overloaded(failure)


def _spent(failure: _Failure) -> ClientError:
    return QuotaSpentError(
        failure.text,
        period=failure.facts.get("period", ""),
        limit=_number(failure.facts.get("limit", "")),
        used=_number(failure.facts.get("used", "")),
        resets_at=_moment(failure.facts.get("resets_at", "")),
        code=failure.code,
        request_id=failure.request_id,
    )


def _too_fast(failure: _Failure) -> ClientError:
    return RateLimitedError(
        failure.text, retry_after_s=failure.retry_after_s or 0.0, code=failure.code, request_id=failure.request_id
    )


def _too_similar(failure: _Failure) -> ClientError:
    return SimilarQueriesError(
        failure.text,
        retry_after_s=failure.retry_after_s,
        labels_left=failure.facts.get("labels_left") == "true",
        row=_number(failure.facts.get("row", "")),
        code=failure.code,
        request_id=failure.request_id,
    )


def _reused(failure: _Failure) -> ClientError:
    return RequestIdReusedError(failure.text, code=failure.code, request_id=failure.request_id)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _overloaded(failure: _Failure) -> ClientError:
    # Without a reason it is gRPC's own text, or that of some other server.
    text = failure.text if failure.reason else f"the server at {failure.target} has too much to do: try again later"
    return OverloadedError(text, retry_after_s=failure.retry_after_s, code=failure.code, request_id=failure.request_id)


def _late(failure: _Failure) -> ClientError:
    text = (
        f"the server at {failure.target} did not answer within {failure.timeout_s:g} s: try again, send fewer images "
        "or allow more time (timeout_s=)"
    )
    return DeadlineError(text, code=failure.code, request_id=failure.request_id)


def _unsupported(failure: _Failure) -> ClientError:
    # Without a reason it is gRPC's own text, or that of some other server.
    text = (
        failure.text
        if failure.reason
        else (f"the server at {failure.target} does not offer this: check that it is a keylock server of this version")
    )
    return UnsupportedError(text, code=failure.code, request_id=failure.request_id)


def _fault(failure: _Failure) -> ClientError:
    error_id = failure.facts.get("error_id", "")
    if error_id:
        text = f"the server at {failure.target} failed: quote the id {error_id} to its operator"
    else:
        text = f"the server at {failure.target} failed ({failure.code}): try again later"
    return ServerFaultError(text, error_id=error_id, code=failure.code, request_id=failure.request_id)


# What one status means in several ways is told by the reason.
_REASONS: dict[str, Callable[[_Failure], ClientError]] = {
    "QUOTA_SPENT": _spent,
    "DISCLOSURES_SPENT": _spent,
    "RATE_LIMITED": _too_fast,
    "QUERIES_TOO_SIMILAR": _too_similar,
    "REQUEST_ID_REUSED": _reused,
}

_ROWS: dict[str, Callable[[_Failure], ClientError]] = {
    "OK": _fault,
    "CANCELLED": _cancelled,
    "UNKNOWN": _cancelled,
    "INVALID_ARGUMENT": _refused,
    "DEADLINE_EXCEEDED": _late,
    "NOT_FOUND": _refused,
    "ALREADY_EXISTS": _refused,
    "PERMISSION_DENIED": _refused,
    "UNAUTHENTICATED": _refused,
    "RESOURCE_EXHAUSTED": _exhausted,
    "FAILED_PRECONDITION": _precondition,
    "ABORTED": _overloaded,
    "OUT_OF_RANGE": _refused,
    "UNIMPLEMENTED": _unsupported,
    "INTERNAL": _cancelled,
    "UNAVAILABLE": _unavailable,
    "DATA_LOSS": _fault,
}


def _read(
    code: str,
    text: str,
    details: list[PackedMessage],
    secrets: tuple[str, ...],
    *,
    settings: Settings,
    timeout_s: float,
    request_id: str,
) -> _Failure:
    reason, facts, violations, retry_after_s, named = "", dict[str, str](), tuple[Violation, ...](), None, ""
    info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    call = error_details_pb2.RequestInfo()
    for detail in details:
        if _unpack(detail, info) and info.domain == _DOMAIN:
            reason = info.reason
            facts = {key: _clean(value, secrets) for key, value in info.metadata.items()}
        elif _unpack(detail, request):
            violations = tuple(
                Violation(_clean(one.field, secrets), _in_arguments(_clean(one.description, secrets)))
                for one in request.field_violations
            )
        elif _unpack(detail, retry):
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif _unpack(detail, call):
            named = _clean(call.request_id, secrets)
    return _Failure(
        code=code,
        text=_in_arguments(_clean(text, secrets)),
        reason=reason,
        facts=facts,
        violations=violations,
        retry_after_s=retry_after_s,
        settings=settings,
        timeout_s=timeout_s,
        request_id=request_id or named,
    )


def _name(code: int) -> str:
    """Return the name of a status of gRPC."""
    return next((one.name for one in grpc.StatusCode if one.value[0] == code), "UNKNOWN")


def _sent(trailers: Iterable[tuple[str, str | bytes]]) -> status_pb2.Status:
    """Return the status that a server has sent with its details; an empty one where there is none."""
    for key, value in trailers:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()


def _unpack(packed: PackedMessage, into: Message) -> bool:
    try:
        return packed.Unpack(into)
    except DecodeError:
        return False


def _in_arguments(text: str) -> str:
    """Return what a server says with parts of a request called by the arguments that a user of this client gives."""
    text = text.replace("send one as 'authorization: Bearer ...'", "give one with license=")
    text = text.replace("the output label alone", "labels alone")
    return _FIELDS.sub(lambda match: f"{_ARGUMENTS[match[1]]}=", text)


def _clean(text: str, secrets: tuple[str, ...]) -> str:
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    one_line = printable(" ".join(text.split()))
    return one_line if len(one_line) <= _MAX_TEXT else one_line[: _MAX_TEXT - 3] + "..."
