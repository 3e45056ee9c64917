"""The RPCs of the public port, ready to be called without gRPC: the same servicers within the same interceptors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import Message

from keylock_server.http.context import HttpContext
from keylock_server.services.parts import Parts
from keylock_server.services.registry import SERVICES
from keylock_server.transport.interceptors import Together, returning

__all__ = ["Answer", "Rpcs"]

_Handler = Any  # grpc.RpcMethodHandler, whose types say neither that it has attributes nor which.


class Answer(NamedTuple):
    """What an RPC has answered.

    Attributes:
        message: The message.
        request_id: Id of the call.
    """

    message: Any
    request_id: str


class _Details(NamedTuple):
    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...] = ()


class _Handlers:
    """Takes handlers as a server of gRPC does, and keeps those with one answer."""

    def __init__(self) -> None:
        self.found: dict[str, _Handler] = {}

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, _Handler]) -> None:
        for name, handler in handlers.items():
            if handler.unary_unary is not None:
                # The request is made within the interceptors, so that one that cannot be made is an error like others.
                own: _Handler = grpc.unary_unary_rpc_method_handler(handler.unary_unary, _make, None)
                self.found[f"/{service}/{name}"] = own

    def add_generic_rpc_handlers(self, handlers: Sequence[_Handler]) -> None:
        """Does nothing: they are the same once more."""


class Rpcs:
    """Calls the RPCs of the public port that have one answer."""

    def __init__(self, handlers: Mapping[str, _Handler]) -> None:
        """Takes what `make` has made; call that instead."""
        self._handlers: Final = dict(handlers)

    @classmethod
    async def make(cls, parts: Parts, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> "Rpcs":
        """Makes them.

        Args:
            parts: What the services work with.
            interceptors: What every call goes through, outermost first.
        """
        handlers = _Handlers()
        for service in SERVICES:
            service.register(service.make(parts), handlers)
        layers, wrapped = Together(interceptors), {}
        for path, handler in handlers.found.items():
            wrapped[path] = await layers.intercept_service(returning(handler), _Details(path))  # type: ignore[arg-type]
        return cls(wrapped)

    async def call(self, path: str, make: Callable[[], Message], context: HttpContext) -> Answer:
        """Calls one.

        Args:
            path: Its name, for example `/keylock.v1.ExplanationService/Explain`.
            make: Makes the request; what it raises is answered as an error of the call.
            context: Of the call.

        Raises:
            Aborted: If it is answered with an error.
        """
        message = await self._handlers[path].unary_unary(make, context)
        return Answer(message, str(context.trailers.get("x-request-id", "")))


def _make(make: Any) -> Any:  # noqa: ANN401
    return make()
