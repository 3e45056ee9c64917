"""What surrounds every call of keylock's own services, from the outside in.

1. `Running` counts calls, so that a server that drains knows when the last one has ended.
2. `RequestIds` gives each call an id.
3. `Errors` makes a status of whatever is raised below.
4. `tracing.Tracing` makes a span, where OpenTelemetry is installed.
5. `Logs` writes one line and counts, before the caller has its answer.
6. `Requests` parses the message, limits the time and notes the deadline.

The services of gRPC itself, health and reflection, are surrounded by `OtherServices` alone.

Authentication, authorisation and admission are not among them: what a license allows depends on the message, and some
methods are open to everybody, so each servicer asks the `Authenticator`, the `Meter` and the `Batchers` by itself, in
the order that its method needs.

Handlers raise; nothing they raise reaches a caller or the log as text unless the table in `statuses` says so. The log
gets the method, the status and the time, and never a message, because a message can quote what a caller sent.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from math import ceil
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from keylock.errors import InputError
from keylock.inference import inference_pb2
from keylock.v1 import explanation_pb2
from keylock_server.transport.calls import Call, current_call, is_request_id, new_request_id, set_call, tenant_of_peer
from keylock_server.transport.logs import log_fault
from keylock_server.transport.statuses import DeadlineError, Row, retry_after, row_of, status_of

__all__ = [
    "REQUEST_ID_ENTRY",
    "Errors",
    "Interceptor",
    "Logs",
    "OtherServices",
    "RequestIds",
    "Requests",
    "Running",
    "Together",
    "returning",
]

REQUEST_ID_ENTRY: Final = "x-request-id"

_LOG: Final = logging.getLogger("keylock_server.calls")
_SERVICES: Final = ("/keylock.v1.", "/inference.")
_ID_FIELDS: Final[dict[type, str]] = {
    explanation_pb2.ExplainRequest: "request_id",
    inference_pb2.ModelInferRequest: "id",
}
_STATUS_S: Final = 2.0
_OK: Final = Row(grpc.StatusCode.OK, "OK")
_CANCELLED: Final = Row(grpc.StatusCode.CANCELLED, "CANCELLED")

Handler = Any  # grpc.RpcMethodHandler, whose types say neither that it has attributes nor which.
Context = grpc.aio.ServicerContext[Any, Any]
Proceed = Callable[[Any, Context], Awaitable[Any]]


class Interceptor(grpc.aio.ServerInterceptor):
    """Surrounds the methods of keylock's own services, which have one answer or are streams in both directions.

    Health and reflection pass untouched; `OtherServices` has them.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the handler of a method, wrapped when it is one of ours."""
        handler: Handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(_SERVICES):
            return handler  # type: ignore[no-any-return]
        return self.wrap(handler, method) if handler.stream_stream is None else self.wrap_stream(handler, method)

    def wrap(self, handler: Handler, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        """Returns a handler that calls `around`."""

        async def call(request: Any, context: Context) -> Any:  # noqa: ANN401
            return await self.around(method, request, context, handler.unary_unary)

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)

    def wrap_stream(self, handler: Handler, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        """Returns a handler that calls `around`, for a stream."""

        async def call(requests: Any, context: Context) -> None:  # noqa: ANN401
            await self.around(method, requests, context, handler.stream_stream)

        return grpc.stream_stream_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)

    async def around(self, method: str, request: Any, context: Context, proceed: Proceed) -> Any:  # noqa: ANN401
        """Answers a call.

        Args:
            method: Its full name.
            request: What was sent: bytes, which `Requests` parses; of a stream, an iterator over such.
            context: That of gRPC, through which a stream is answered.
            proceed: Answers it, one layer further in.
        """
        raise NotImplementedError


class Together(grpc.aio.ServerInterceptor):
    """Several interceptors as one, which wraps each method once and not for every call."""

    def __init__(self, layers: Sequence[grpc.aio.ServerInterceptor]) -> None:
        """Takes them, the outermost first."""
        self._layers = tuple(layers)
        # By the name of a method that exists: what it was, and what it was made into.
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the handler of a method as all of them together wrap it; None where there is no such method."""
        handler: Handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        own, made = self._wrapped.get(method, (None, None))
        if own is not handler:
            made = handler
            for layer in reversed(self._layers):
                made = await layer.intercept_service(returning(made), handler_call_details)
            self._wrapped[method] = handler, made
        return made  # type: ignore[no-any-return]


def returning(handler: Handler) -> Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]:
    """Returns what an interceptor goes on to where a handler is found already."""

    async def find(_details: grpc.HandlerCallDetails) -> Handler:
        return handler

    return find


class Running(Interceptor):
    """Counts the calls that run.

    Attributes:
        count: How many there are.
        leaving: Set when there are to be no more; streams then end as soon as they can.
    """

    def __init__(self) -> None:
        """Begins to count, at zero."""
        self.count = 0
        self.leaving = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Returns when no call runs."""
        await self._idle.wait()

    async def around(self, method: str, request: Any, context: Context, proceed: Proceed) -> Any:  # noqa: ANN401
        """Counts a call while it runs."""
        self.count += 1
        self._idle.clear()
        try:
            return await proceed(request, context)
        finally:
            self.count -= 1
            if not self.count:
                self._idle.set()


class RequestIds(Interceptor):
    """Gives each call an id and returns it in the trailing metadata.

    It is the one in the entry `x-request-id`, if that is well formed, else a new one; `Requests` replaces it by the one
    in the message, if there is one. The entry names calls in logs alone: what a license is charged for is identified by
    the message, because proxies use one entry for several requests.
    """

    async def around(self, method: str, request: Any, context: Context, proceed: Proceed) -> Any:  # noqa: ANN401
        """Makes the call the current one."""
        sent = [value for name, value in context.invocation_metadata() or () if name == REQUEST_ID_ENTRY]
        given = str(sent[0]) if len(sent) == 1 and is_request_id(sent[0]) else None
        call = Call(method, given or new_request_id(), tenant=tenant_of_peer(context.peer()))
        set_call(call)
        answer = await proceed(request, context)
        context.set_trailing_metadata(((REQUEST_ID_ENTRY, call.request_id),))
        return answer


class Logs(Interceptor):
    """Notes how each call ended, writes one line for it, and counts it."""

    def __init__(
        self, count: Callable[[str, str, str, float], None] = lambda _method, _code, _reason, _seconds: None
    ) -> None:
        """Makes the interceptor.

        Args:
            count: Told of each call that ended: method, name of the status, reason, seconds.
        """
        self._count = count

    async def around(self, method: str, request: Any, context: Context, proceed: Proceed) -> Any:  # noqa: ANN401
        """Looks at how a call ends and how long that takes."""
        call = current_call() or Call(method, "")
        started = time.monotonic()
        try:
            answer = await proceed(request, context)
            call.outcome = _OK
        except asyncio.CancelledError:
            call.outcome = _CANCELLED
            raise
        except Exception as error:
            call.outcome = row_of(error)
            raise
        finally:
            self._tell(call, time.monotonic() - started)
        return answer

    def _tell(self, call: Call, seconds: float) -> None:
        code, reason = call.outcome.code.name, call.outcome.reason
        self._count(call.method, code, reason, seconds)
        fields = {"method": call.method, "code": code, "reason": reason, "milliseconds": round(seconds * 1000, 1)}
        level = logging.INFO if call.outcome.public else logging.ERROR
        _LOG.log(level, "%s %s %s %.1f ms", call.method, code, reason, seconds * 1000, extra=fields)


class Errors(Interceptor):
    """Makes a status with details of whatever a handler raises."""

    async def around(self, method: str, request: Any, context: Context, proceed: Proceed) -> Any:  # noqa: ANN401
        """Answers a call, with an error where it fails."""
        call = current_call() or Call(method, "")
        try:
            return await proceed(request, context)
        except Exception as error:  # Whatever a handler raises becomes a status here.
            error_id = uuid.uuid4().hex[:12]
            if not row_of(error).public:
                log_fault(error, f"error {error_id}")
            status = rpc_status.to_status(status_of(error, error_id=error_id, request_id=call.request_id))
            trailers = _trailers(error, call.request_id, status.trailing_metadata)
            await _end(context, status.code, status.details, trailers)


class Requests(Interceptor):
    """Parses messages, takes the id out of those that have one, and ends calls that take too long."""

    def __init__(self, *, deadline_s: float) -> None:
        """Makes the interceptor.

        Args:
            deadline_s: The longest any call may take, in seconds; callers may set shorter deadlines.
        """
        self._deadline_s = deadline_s

    def wrap(self, handler: Handler, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        """Returns a handler that takes bytes, because gRPC answers UNKNOWN to a message it cannot parse."""

        async def call(data: bytes, context: Context) -> Any:  # noqa: ANN401
            return await self.around(method, _parse(handler, data), context, handler.unary_unary)

        return grpc.unary_unary_rpc_method_handler(call, None, handler.response_serializer)

    def wrap_stream(self, handler: Handler, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        """Returns a handler that takes bytes. A stream limits its own time, image by image."""

        async def call(stream: AsyncIterator[bytes], context: Context) -> None:
            current, remaining_s = current_call(), context.time_remaining()
            if current is not None and remaining_s is not None:
                current.deadline = asyncio.get_running_loop().time() + remaining_s
            await handler.stream_stream((_parse(handler, data) async for data in stream), context)

        return grpc.stream_stream_rpc_method_handler(call, None, handler.response_serializer)

    async def around(self, method: str, request: Any, context: Context, proceed: Proceed) -> Any:  # noqa: ANN401
        """Answers a call within the limit of time."""
        call = current_call()
        given = getattr(request, _ID_FIELDS[type(request)]) if type(request) in _ID_FIELDS else ""
        if call is not None and is_request_id(given):
            call.request_id = given
        if call is not None:
            call.deadline = _deadline(context, self._deadline_s)
        try:
            async with asyncio.timeout(self._deadline_s) as limit:
                return await proceed(request, context)
        except TimeoutError:
            if limit.expired():
                raise DeadlineError(self._deadline_s) from None
            raise


class OtherServices(grpc.aio.ServerInterceptor):
    """Refuses messages that the services of gRPC itself, health and reflection, cannot parse.

    gRPC would answer UNKNOWN, and write an error to the log for each.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the handler of a method, wrapped when it is none of ours."""
        handler: Handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_SERVICES):
            return handler  # type: ignore[no-any-return]

        async def parse(data: bytes, context: Context) -> Any:  # noqa: ANN401
            try:
                return _parse(handler, data)
            except InputError as error:
                status = rpc_status.to_status(status_of(error, error_id=""))
                await context.abort(status.code, status.details, status.trailing_metadata)

        async def answer(data: bytes, context: Context) -> Any:  # noqa: ANN401
            return await handler.unary_unary(await parse(data, context), context)

        async def stream(given: Any, context: Context) -> None:  # noqa: ANN401
            if handler.request_streaming:
                answers = handler.stream_stream((await parse(data, context) async for data in given), context)
            else:
                answers = handler.unary_stream(await parse(given, context), context)
            if not inspect.isasyncgen(answers):
                await answers
                return
            async for one in answers:
                await context.write(one)

        if not handler.response_streaming:
            return grpc.unary_unary_rpc_method_handler(answer, None, handler.response_serializer)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)
        return grpc.unary_stream_rpc_method_handler(stream, None, handler.response_serializer)


def _parse(handler: Handler, data: bytes) -> Any:  # noqa: ANN401
    try:
        return handler.request_deserializer(data)
    except DecodeError:
        raise InputError("the request is not a message of this method: compare the client's protos") from None


def _deadline(context: Context, longest_s: float) -> float:
    """Returns when nobody waits any more, by the clock of the event loop: the caller's deadline or the server's."""
    remaining_s = context.time_remaining()
    allowed_s = longest_s if remaining_s is None else min(longest_s, remaining_s)
    return asyncio.get_running_loop().time() + allowed_s


async def _end(context: Context, code: grpc.StatusCode, details: str, trailers: Any) -> None:  # noqa: ANN401
    """Ends a call with an error; always raises.

    An answer that its reader does not take is in the way of the status. It follows when the answer is taken after all,
    and the call is over for the server without it.
    """
    ending = asyncio.ensure_future(context.abort(code, details, trailers))
    ending.add_done_callback(lambda future: None if future.cancelled() else future.exception())
    await asyncio.wait({ending}, timeout=_STATUS_S)
    if ending.done():
        ending.result()
    raise asyncio.CancelledError


def _trailers(error: Exception, request_id: str, trailers: Any) -> tuple[tuple[str, str | bytes], ...]:  # noqa: ANN401
    told = (*trailers, (REQUEST_ID_ENTRY, request_id))
    retry_after_s = retry_after(error)
    if retry_after_s is None:
        return told
    return (*told, ("grpc-retry-pushback-ms", str(ceil(retry_after_s * 1000))))
