"""What surrounds every call of keylock's own services: parsing, the deadline, one log line, errors as statuses.

Handlers raise; nothing they raise reaches a caller or the log as text unless the table in `statuses` says so. The log
gets the method, the status and the time, and never a message, because a message can quote what a caller sent.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable
from math import ceil
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from keylock.errors import InputError
from keylock_server.statuses import DeadlineError, Row, retry_after, row_of, status_of

__all__ = ["CallInterceptor"]

_LOG: Final = logging.getLogger("keylock_server.calls")
_SERVICES: Final = ("/keylock.v1.", "/inference.")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the unary methods of keylock's own services; health and reflection pass untouched."""

    def __init__(
        self,
        *,
        deadline_s: float,
        count: Callable[[str, str, str, float], None] = lambda _method, _code, _reason, _seconds: None,
    ) -> None:
        """Makes the interceptor.

        Args:
            deadline_s: The longest any call may take, in seconds; callers may set shorter deadlines.
            count: Told of each call that ended: method, name of the status, reason, seconds.
        """
        self._count = count
        self._deadline_s = deadline_s
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Returns when no call runs."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the handler of a method, wrapped when it is one of ours."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or handler.unary_unary is None or not method.startswith(_SERVICES):
            return handler  # type: ignore[no-any-return]

        async def call(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: ANN401
            self._running += 1
            self._idle.clear()
            try:
                return await self._call(handler, method, data, context)
            finally:
                self._running -= 1
                if not self._running:
                    self._idle.set()

        # The request arrives as bytes and is parsed in `_call`, because gRPC answers UNKNOWN to one it cannot parse.
        return grpc.unary_unary_rpc_method_handler(call, None, handler.response_serializer)

    async def _call(
        self,
        handler: Any,  # noqa: ANN401
        method: str,
        data: bytes,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> Any:  # noqa: ANN401
        started = time.monotonic()
        error_id = uuid.uuid4().hex[:12]
        try:
            answer = await self._within_deadline(handler, data, context)
        except asyncio.CancelledError:
            self._log(logging.INFO, method, Row(grpc.StatusCode.CANCELLED, "CANCELLED"), started)
            raise
        except Exception as error:  # Whatever a handler raises becomes a status here.
            row = row_of(error)
            self._log(logging.INFO if row.public else logging.ERROR, method, row, started)
            if not row.public:
                _log_fault(error, error_id)
            status = rpc_status.to_status(status_of(error, error_id=error_id))
            await context.abort(status.code, status.details, _trailers(error, status.trailing_metadata))
        self._log(logging.INFO, method, Row(grpc.StatusCode.OK, "OK"), started)
        return answer

    async def _within_deadline(
        self,
        handler: Any,  # noqa: ANN401
        data: bytes,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> Any:  # noqa: ANN401
        try:
            request = handler.request_deserializer(data)
        except DecodeError:
            raise InputError("the request is no message of this method: compare the client's protos") from None
        try:
            async with asyncio.timeout(self._deadline_s) as limit:
                return await handler.unary_unary(request, context)
        except TimeoutError:
            if limit.expired():
                raise DeadlineError(self._deadline_s) from None
            raise

    def _log(self, level: int, method: str, row: Row, started: float) -> None:
        seconds = time.monotonic() - started
        self._count(method, row.code.name, row.reason, seconds)
        fields = {
            "method": method,
            "code": row.code.name,
            "reason": row.reason,
            "milliseconds": round(seconds * 1000, 1),
        }
        _LOG.log(level, "%s %s %s %.1f ms", method, row.code.name, row.reason, seconds * 1000, extra=fields)


def _log_fault(error: BaseException, error_id: str) -> None:
    """Logs where a fault happened and of what type it is; its text could quote a secret and is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    _LOG.error("error %s: %s at %s", error_id, type(error).__qualname__, where)


def _trailers(error: Exception, trailers: Any) -> tuple[tuple[str, str | bytes], ...]:  # noqa: ANN401
    retry_after_s = retry_after(error)
    if retry_after_s is None:
        return tuple(trailers)
    return (*trailers, ("grpc-retry-pushback-ms", str(ceil(retry_after_s * 1000))))
