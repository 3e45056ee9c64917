"""One table from error to gRPC status, and the details every failing call carries.

A row says which status and which stable reason an error becomes, and whether its message is for the caller. Errors
that tell about the server rather than about the request become `INTERNAL` with an id, as does every exception that is
no `KeylockError`; the text of those stays here.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from keylock import errors
from keylock.errors import (
    InputError,
    KeylockError,
    LicenseError,
    LicenseReason,
    QuotaError,
    RateError,
    ServiceError,
    UnknownNameError,
)
from keylock_server.guard.refusal import SimilarQueriesError

__all__ = [
    "DOMAIN",
    "LICENSE_STATUSES",
    "STATUSES",
    "DeadlineError",
    "ExpiredError",
    "LeavingError",
    "LoadError",
    "NoKeyError",
    "NoMeteringError",
    "NoProofError",
    "NoStoreError",
    "NotLoadedError",
    "NotServedError",
    "OperatorsOnlyError",
    "OverloadedError",
    "RequestError",
    "Row",
    "StoreLostError",
    "UnknownReceiptError",
    "retry_after",
    "status_of",
]

DOMAIN: Final = "keylock"

# Details travel in trailing metadata, of which clients take 8 KiB by default; names and messages are cut well below.
_MAX_MESSAGE: Final = 800
_MAX_VALUE: Final = 100


class NotServedError(UnknownNameError):
    """An explainer is in the bundle and this server does not compute it."""

    def __init__(self, name: str, why: str, known: Iterable[str]) -> None:
        super().__init__("explainer", name, known)
        KeylockError.__init__(
            self, f"the explainer {name!r} is not served here ({why}): choose one of {', '.join(self.known)}"
        )


class OverloadedError(ServiceError):
    """The queue is full.

    Attributes:
        retry_after_s: When to try again, in seconds.
    """

    def __init__(self, *, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("the server is busy and its queue is full: try again in a moment")


class DeadlineError(ServiceError):
    """A call took longer than the server, or the request itself, allows."""

    def __init__(self, deadline_s: float, *, limit: str = "the server's limit") -> None:
        super().__init__(f"the call took longer than {limit} of {deadline_s:g} s: send fewer images at once")


class ExpiredError(ServiceError):
    """The deadline of a call came before its turn."""

    def __init__(self) -> None:
        super().__init__("the deadline of the call came before its turn: allow more time, or try again later")


class LeavingError(ServiceError):
    """A stream was cut short because the server stops."""

    def __init__(self) -> None:
        super().__init__("the server stops: send what was not answered again, under the same request id")


class NoKeyError(ServiceError):
    """A license was presented to a server that holds no key."""

    def __init__(self) -> None:
        super().__init__(
            "this server holds no key and cannot compute true maps for a license: ask its operator for one that does"
        )


class NoMeteringError(ServiceError):
    """A license with limits was presented to a server that keeps no record of use."""

    def __init__(self) -> None:
        super().__init__(
            "this server keeps no record of use and cannot honour the limits of a license: ask its operator for one "
            "that does"
        )


class StoreLostError(ServiceError):
    """The store is not the one the server began with, so that nobody's license can be checked or charged."""

    def __init__(self) -> None:
        super().__init__(
            "this server has lost its store of licenses, and explains nothing for a license until its operator has "
            "restored it: try another server, or later"
        )


class NoStoreError(ServiceError):
    """An operator asked about licenses, and the server has no store of them."""

    def __init__(self) -> None:
        super().__init__("this server has no license store: start it with one (its setting license_store)")


class NotLoadedError(ServiceError):
    """A model was asked that the server knows and has not loaded."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the model {name!r} is not loaded at the moment: try again later, or ask the server's operator"
        )


class LoadError(ServiceError):
    """An operator asked for a model that cannot be loaded."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"the model {name!r} cannot be loaded: {why}")


class OperatorsOnlyError(ServiceError):
    """Somebody else than an operator asked for what only operators may do."""

    def __init__(self) -> None:
        super().__init__(
            "only operators load and unload models: ask on the admin port (setting admin_port), with a certificate"
        )


class RequestError(InputError):
    """A request is wrong as HTTP, before it is the message of a method.

    Attributes:
        status: Of HTTP.
        headers: What the answer says beside it.
    """

    def __init__(
        self, status: int, message: str, *, headers: Mapping[str, str] | None = None, field: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.headers, self.field = status, dict(headers or {}), field


class NoProofError(ServiceError):
    """A proof was asked of a server that keeps no audit log, or signs nothing."""

    def __init__(self) -> None:
        super().__init__("this server keeps no audit log that it could prove receipts by: ask the vendor for the proof")


class UnknownReceiptError(InputError):
    """A license has no such receipt."""

    def __init__(self) -> None:
        super().__init__("this license has no such receipt in the audit log of this server: ask the vendor")


class Row(NamedTuple):
    """What an error becomes.

    Attributes:
        code: The gRPC status.
        reason: `ErrorInfo.reason`, part of the interface.
        public: Whether the caller sees the message.
    """

    code: grpc.StatusCode
    reason: str
    public: bool = True


_INTERNAL: Final = Row(grpc.StatusCode.INTERNAL, "INTERNAL", public=False)

STATUSES: Final[dict[type[KeylockError], Row]] = {
    KeylockError: _INTERNAL,
    InputError: Row(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT"),
    RequestError: Row(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT"),
    errors.ImageError: Row(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_IMAGE"),
    errors.TensorError: Row(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_TENSOR"),
    UnknownNameError: Row(grpc.StatusCode.NOT_FOUND, "UNKNOWN_NAME"),
    NotServedError: Row(grpc.StatusCode.NOT_FOUND, "NOT_SERVED"),
    errors.DataError: _INTERNAL,
    errors.KeySeedError: _INTERNAL,
    errors.SignatureError: _INTERNAL,
    errors.BundleError: _INTERNAL,
    errors.BundleTamperedError: _INTERNAL,
    errors.UnsealError: _INTERNAL,
    # The reason of a license error is its own; its code is in LICENSE_STATUSES.
    LicenseError: Row(grpc.StatusCode.UNAUTHENTICATED, "LICENSE"),
    errors.AuditLogError: _INTERNAL,
    errors.ReceiptError: _INTERNAL,
    errors.ModelError: _INTERNAL,
    errors.LayerNotFoundError: _INTERNAL,
    errors.TrainingError: _INTERNAL,
    errors.NonFiniteLossError: _INTERNAL,
    errors.OutOfMemoryError: _INTERNAL,
    errors.StorageError: _INTERNAL,
    errors.InUseError: _INTERNAL,
    errors.ResumeError: _INTERNAL,
    errors.ExportError: _INTERNAL,
    ServiceError: Row(grpc.StatusCode.UNAVAILABLE, "SERVICE"),
    # The store's own messages are for the vendor: they name files and addresses of the vendor's machines.
    errors.StoreError: Row(grpc.StatusCode.UNAVAILABLE, "STORE", public=False),
    errors.StoreReplacedError: Row(grpc.StatusCode.UNAVAILABLE, "STORE_LOST", public=False),
    errors.RegistryError: _INTERNAL,
    StoreLostError: Row(grpc.StatusCode.UNAVAILABLE, "STORE_LOST"),
    errors.MeteringError: _INTERNAL,
    errors.QuotaError: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_SPENT"),
    errors.DisclosuresSpentError: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "DISCLOSURES_SPENT"),
    errors.RateError: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED"),
    errors.RequestReusedError: Row(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
    OverloadedError: Row(grpc.StatusCode.UNAVAILABLE, "OVERLOADED"),
    SimilarQueriesError: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUERIES_TOO_SIMILAR"),
    DeadlineError: Row(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE"),
    ExpiredError: Row(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE"),
    NoKeyError: Row(grpc.StatusCode.FAILED_PRECONDITION, "NO_KEY"),
    NoMeteringError: Row(grpc.StatusCode.FAILED_PRECONDITION, "NO_METERING"),
    LeavingError: Row(grpc.StatusCode.UNAVAILABLE, "LEAVING"),
    NoProofError: Row(grpc.StatusCode.FAILED_PRECONDITION, "NO_PROOF"),
    UnknownReceiptError: Row(grpc.StatusCode.NOT_FOUND, "UNKNOWN_RECEIPT"),
    NoStoreError: Row(grpc.StatusCode.FAILED_PRECONDITION, "NO_STORE"),
    NotLoadedError: Row(grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_LOADED"),
    LoadError: Row(grpc.StatusCode.FAILED_PRECONDITION, "MODEL_NOT_LOADABLE"),
    OperatorsOnlyError: Row(grpc.StatusCode.PERMISSION_DENIED, "OPERATORS_ONLY"),
}

LICENSE_STATUSES: Final[dict[LicenseReason, grpc.StatusCode]] = {
    LicenseReason.MISSING: grpc.StatusCode.UNAUTHENTICATED,
    LicenseReason.NEEDED_FOR_TARGET: grpc.StatusCode.UNAUTHENTICATED,
    LicenseReason.MALFORMED: grpc.StatusCode.UNAUTHENTICATED,
    LicenseReason.FORGED: grpc.StatusCode.UNAUTHENTICATED,
    LicenseReason.UNKNOWN_ISSUER: grpc.StatusCode.UNAUTHENTICATED,
    LicenseReason.UNKNOWN: grpc.StatusCode.UNAUTHENTICATED,
    LicenseReason.NOT_YET_VALID: grpc.StatusCode.UNAUTHENTICATED,
    LicenseReason.EXPIRED: grpc.StatusCode.UNAUTHENTICATED,
    LicenseReason.REVOKED: grpc.StatusCode.UNAUTHENTICATED,
    LicenseReason.SUSPENDED: grpc.StatusCode.UNAUTHENTICATED,
    LicenseReason.WRONG_CERTIFICATE: grpc.StatusCode.UNAUTHENTICATED,
    LicenseReason.WITHOUT_DISCLOSURE: grpc.StatusCode.PERMISSION_DENIED,
    LicenseReason.WRONG_MODEL: grpc.StatusCode.PERMISSION_DENIED,
    LicenseReason.WRONG_EXPLAINER: grpc.StatusCode.PERMISSION_DENIED,
    LicenseReason.BATCH_TOO_LARGE: grpc.StatusCode.PERMISSION_DENIED,
    LicenseReason.IMAGE_TOO_LARGE: grpc.StatusCode.PERMISSION_DENIED,
}


def row_of(error: BaseException) -> Row:
    """Finds the row of an error: its own, or that of the nearest class above it."""
    if isinstance(error, LicenseError):
        return Row(LICENSE_STATUSES[error.reason], error.reason.value)
    for kind in type(error).__mro__:
        if kind in STATUSES:
            return STATUSES[kind]
    return _INTERNAL


def status_of(error: BaseException, *, error_id: str, request_id: str = "") -> status_pb2.Status:
    """Describes an error to the caller.

    Args:
        error: What a handler raised.
        error_id: Names the entry in the server's log, for errors whose text stays in the server.
        request_id: Id of the call; empty where it has none.

    Returns:
        The status with its details: always an `ErrorInfo`, a `RequestInfo` where the call has an id, and a
        `BadRequest`, `QuotaFailure` or `RetryInfo` where it helps.
    """
    row = row_of(error)
    message = str(error) if row.public else f"the server failed; quote the id {error_id} to its operator"
    message = _cut(message, _MAX_MESSAGE)
    info = error_details_pb2.ErrorInfo(reason=row.reason, domain=DOMAIN)
    if not row.public:
        info.metadata["error_id"] = error_id
    if isinstance(error, UnknownNameError):
        info.metadata["kind"] = error.kind
        info.metadata["name"] = _cut(error.name, _MAX_VALUE)
    details: list[Message] = [info]
    if request_id:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    if row.public and isinstance(error, (InputError, LicenseError)) and error.field:
        bad_request = error_details_pb2.BadRequest()
        bad_request.field_violations.add(field=error.field, description=message)
        details.append(bad_request)
    if isinstance(error, QuotaError):
        details.append(_describe_quota(error, info, message))
    if isinstance(error, SimilarQueriesError):
        info.metadata["row"], info.metadata["labels_left"] = str(error.row), str(error.labels_left).lower()
    retry_after_s = retry_after(error)
    if retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    code: int = row.code.value[0]
    return status_pb2.Status(code=code, message=message, details=packed)


def retry_after(error: BaseException) -> float | None:
    """Returns when to try again, in seconds; None where trying again is no use or nobody knows."""
    return error.retry_after_s if isinstance(error, (OverloadedError, RateError, SimilarQueriesError)) else None


def _describe_quota(
    error: QuotaError, info: error_details_pb2.ErrorInfo, message: str
) -> error_details_pb2.QuotaFailure:
    """Says which quota is spent; `resets_at` is a metadata entry in RFC 3339, since no standard detail has a place."""
    info.metadata["period"] = error.period
    info.metadata["limit"] = str(error.limit)
    info.metadata["used"] = str(error.used)
    info.metadata["units"] = str(error.units)
    if error.resets_at is not None:
        info.metadata["resets_at"] = error.resets_at.isoformat()
    failure = error_details_pb2.QuotaFailure()
    failure.violations.add(subject=f"license:{error.license_id}", description=message)
    return failure


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
