"""How calls that fail are answered over HTTP: problem details (RFC 9457), or the form of the Open Inference Protocol.

The status of HTTP follows from that of gRPC as `google.rpc.Code` has it.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from math import ceil
from typing import Any, Final

import grpc
from google.rpc import error_details_pb2, status_pb2

from keylock_server.http.context import Aborted
from keylock_server.transport.statuses import RequestError

__all__ = ["HTTP_STATUSES", "Failure"]

HTTP_STATUSES: Final[dict[grpc.StatusCode, int]] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}

_DETAILS: Final = "grpc-status-details-bin"


class Failure:
    """A call that failed, as it is told.

    Attributes:
        status: Of HTTP.
        headers: What the answer says beside it.
    """

    def __init__(self, status: int, message: str, *, reason: str, code: str, headers: Mapping[str, str]) -> None:
        self.status, self.headers = status, dict(headers)
        self._message = message
        self._members: dict[str, Any] = {"reason": reason, "code": code}

    @classmethod
    def of_request(cls, error: RequestError, *, request_id: str) -> "Failure":
        """Describes a request that no method was asked by."""
        failure = cls(
            error.status, error.message, reason="INVALID_INPUT", code="INVALID_ARGUMENT", headers=error.headers
        )
        failure._members["request_id"] = request_id
        return failure

    @classmethod
    def of_call(cls, aborted: Aborted, *, error: RequestError | None) -> "Failure":
        """Describes a call that ended with a status.

        Args:
            aborted: How it ended.
            error: Why, where it was wrong as HTTP.
        """
        told = status_pb2.Status()
        details = aborted.trailers.get(_DETAILS, b"")
        told.ParseFromString(details if isinstance(details, bytes) else b"")
        status = HTTP_STATUSES.get(aborted.code, 500) if error is None else error.status
        failure = cls(
            status, aborted.message, reason="", code=aborted.code.name, headers={} if error is None else error.headers
        )
        for packed in told.details:
            failure._tell(packed)
        if status == HTTPStatus.UNAUTHORIZED:
            failure.headers["www-authenticate"] = "Bearer"
        pause_ms = aborted.trailers.get("grpc-retry-pushback-ms")
        if pause_ms is not None:
            failure.headers["retry-after"] = str(ceil(int(pause_ms) / 1000))
            failure._members["retry_after_s"] = int(pause_ms) / 1000
        return failure

    @property
    def request_id(self) -> str:
        """Id of the call; empty where it has none."""
        return str(self._members.get("request_id", ""))

    def as_problem(self) -> tuple[bytes, bytes]:
        """Returns media type and body of a problem (RFC 9457)."""
        problem = {"type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status}
        return b"application/problem+json", json.dumps({**problem, "detail": self._message, **self._members}).encode()

    def as_inference_error(self) -> tuple[bytes, bytes]:
        """Returns media type and body as clients of the Open Inference Protocol read them."""
        return b"application/json", json.dumps({"error": self._message, **self._members}).encode()

    def _tell(self, packed: Any) -> None:  # noqa: ANN401 - google.protobuf.any_pb2.Any
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RequestInfo, error_details_pb2.BadRequest):
            if packed.Is(kind.DESCRIPTOR):
                detail = kind()
                packed.Unpack(detail)
                if kind is error_details_pb2.ErrorInfo:
                    self._members["reason"] = detail.reason
                    if detail.metadata:
                        self._members["metadata"] = dict(detail.metadata.items())
                elif kind is error_details_pb2.RequestInfo:
                    self._members["request_id"] = detail.request_id
                else:
                    self._members["field"] = detail.field_violations[0].field
