"""A span for each call, with what the server knows and nothing that a caller sent."""

import sys

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from keylock.errors import ServiceError
from keylock.inference import inference_pb2
from keylock.v1 import explanation_pb2 as pb
from keylock_server.operations.tracing import open_tracing, set_up_tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def traced(start_server):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return start_server(tracer_provider=provider), exporter


@pytest.fixture
def spans(traced):
    traced[1].clear()
    return traced[1].get_finished_spans


def test_an_explanation_is_a_span(traced, spans, vendor, tiny):
    image = tiny.tensor_image(tiny.images(1)[0])
    traced[0].explain(image, image, token=vendor.grant().token, request_id="mine")
    (span,) = spans()
    assert (span.name, span.kind.name) == ("keylock.v1.ExplanationService/Explain", "SERVER")
    assert dict(span.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "keylock.v1.ExplanationService",
        "rpc.method": "Explain",
        "rpc.grpc.status_code": 0,
        "keylock.reason": "OK",
        "keylock.model": "tiny",
        "keylock.explainer": "brightness",
        "keylock.keyed": True,
        "keylock.images": 2,
    }


def test_an_error_is_a_span_without_its_text(traced, spans, tiny):
    with pytest.raises(grpc.RpcError):
        traced[0].explain(tiny.tensor_image(tiny.images(1)[0]), explainer="my-own-text")
    (span,) = spans()
    assert (span.attributes["keylock.reason"], span.attributes["rpc.grpc.status_code"]) == ("UNKNOWN_NAME", 5)
    assert (span.status.status_code.name, span.events) == ("UNSET", ())
    assert "my-own-text" not in span.to_json()


def test_a_call_continues_the_trace_of_its_caller_and_leaves_the_rest(traced, spans):
    metadata = [("traceparent", PARENT), ("tracestate", "their=text"), ("baggage", "their=too")]
    with pytest.raises(grpc.RpcError):
        traced[0].inference.ModelInfer(inference_pb2.ModelInferRequest(), metadata=metadata)
    traced[0].explanation.GetModel(pb.GetModelRequest(), metadata=[("traceparent", "nonsense")])
    continued, fresh = spans()
    assert f"{continued.context.trace_id:032x}" in PARENT
    assert f"{continued.parent.span_id:016x}" in PARENT
    assert fresh.parent is None
    assert "their" not in continued.to_json()


def test_without_the_package_there_are_no_spans(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert open_tracing() == ()
    set_up_tracing()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    with pytest.raises(ServiceError, match="install the extra"):
        set_up_tracing()


def test_an_exporter_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "nonesuch")
    with pytest.raises(ServiceError, match="nonesuch"):
        set_up_tracing()
