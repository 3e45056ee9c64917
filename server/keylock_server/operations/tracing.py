"""A span for each call, by OpenTelemetry, where the extra `otel` is installed and something collects spans.

A span has the method, how the call ended, and what `calls.describe_call` was told: model, explainer, whether the key
was on, how many images. All of it comes from the server. The text of errors is never recorded, and of what a caller
sends only the ids of its own trace are taken over.
"""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import grpc

from keylock.errors import ServiceError
from keylock_server.transport.calls import Call, current_call
from keylock_server.transport.interceptors import Context, Interceptor, Proceed

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider

__all__ = ["Tracing", "can_export_spans", "open_tracing", "set_up_tracing"]

_PARENT: Final = "traceparent"
_EXPORTERS: Final = "opentelemetry_traces_exporter"
# As OpenTelemetry's conventions have it for servers: what is the caller's mistake is not an error of the span.
_FAULTS: Final = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class Tracing(Interceptor):
    """Makes a span for each call, as part of the caller's trace if the call names one."""

    def __init__(self, provider: TracerProvider) -> None:
        """Makes the interceptor.

        Args:
            provider: Gives the tracer.
        """
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer, self._provider = provider.get_tracer("keylock_server"), provider
        self._propagator = TraceContextTextMapPropagator()

    async def around(self, method: str, request: Any, context: Context, proceed: Proceed) -> Any:  # noqa: ANN401
        """Answers a call within a span, once somebody collects spans."""
        from opentelemetry.trace import ProxyTracerProvider, SpanKind, get_tracer_provider

        # Stands for the provider of the process, which may be set later on.
        if isinstance(self._provider, ProxyTracerProvider) and get_tracer_provider() is self._provider:
            return await proceed(request, context)
        # Without `tracestate` and baggage, whose text would go on to whoever collects the spans.
        sent = {name: value for name, value in context.invocation_metadata() or () if name == _PARENT}
        service, _, name = method.removeprefix("/").partition("/")
        with self._tracer.start_as_current_span(
            f"{service}/{name}",
            context=self._propagator.extract(sent),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                return await proceed(request, context)
            finally:
                _describe(span, current_call() or Call(method, ""))


def open_tracing(provider: TracerProvider | None = None) -> tuple[Interceptor, ...]:
    """Returns what makes spans; nothing where OpenTelemetry is not installed.

    Args:
        provider: Gives the tracer; the one of the process when None.
    """
    if provider is None:
        if not _is_installed("opentelemetry.trace"):
            return ()
        from opentelemetry.trace import get_tracer_provider

        provider = get_tracer_provider()
    return (Tracing(provider),)


def set_up_tracing() -> None:
    """Lets this process export spans as the environment says, in the variables of OpenTelemetry.

    Nothing is exported unless `OTEL_TRACES_EXPORTER` names exporters.

    Raises:
        ServiceError: If it does, and what it needs is not installed.
    """
    names = [name.strip() for name in os.environ.get("OTEL_TRACES_EXPORTER", "").split(",")]
    names = [name for name in names if name not in ("", "none")]
    if not names or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    if not can_export_spans():
        raise ServiceError(
            "OTEL_TRACES_EXPORTER asks for spans: install the extra with pip install '.[otel]'"
        ).for_missing_extra()
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import set_tracer_provider

    named = Resource.create()
    if str(named.attributes[SERVICE_NAME]).startswith("unknown_service"):
        named = named.merge(Resource({SERVICE_NAME: "keylock"}))
    provider = TracerProvider(resource=named)
    for name in names:
        found = list(entry_points(group=_EXPORTERS, name=name))
        if not found:
            raise ServiceError(
                f"OTEL_TRACES_EXPORTER names {name!r} and no such exporter is installed: install its package, for "
                "example opentelemetry-exporter-otlp for otlp"
            )
        provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
    set_tracer_provider(provider)


def _describe(span: Span, call: Call) -> None:
    from opentelemetry.trace import StatusCode

    code = call.outcome.code
    told: dict[str, str | int | bool | None] = {
        "rpc.grpc.status_code": code.value[0],
        "keylock.reason": call.outcome.reason,
        "keylock.model": call.model,
        "keylock.explainer": call.explainer,
        "keylock.keyed": call.keyed,
        "keylock.images": call.images,
    }
    span.set_attributes({name: value for name, value in told.items() if value is not None})
    if code is not grpc.StatusCode.OK and code.name in _FAULTS:
        span.set_status(StatusCode.ERROR)


def can_export_spans() -> bool:
    """Returns whether what exports spans is installed."""
    return _is_installed("opentelemetry.sdk.trace")


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
