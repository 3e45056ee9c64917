"""Health and reflection are gRPC's own services: they answer as ever, and what is not a message is refused in words."""

import logging

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

METHODS = (
    ("/grpc.health.v1.Health/Check", "unary_unary"),
    ("/grpc.health.v1.Health/Watch", "unary_stream"),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "stream_stream"),
)


@pytest.fixture(scope="module")
def reflecting(start_server):
    return start_server(reflection=True)


@pytest.mark.parametrize(("method", "kind"), METHODS)
def test_what_is_no_message_is_an_invalid_argument_and_no_fault(method, kind, reflecting, caplog):
    call = getattr(reflecting.channel, kind)(method)
    broken = b"\x0a\x05a"
    given = iter([broken]) if kind == "stream_stream" else broken
    with caplog.at_level(logging.ERROR), pytest.raises(grpc.RpcError) as caught:
        list(call(given, timeout=10))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "is not a message of this method" in caught.value.details()
    assert caplog.records == []


def test_health_is_told_and_watched(reflecting):
    stub = health_pb2_grpc.HealthStub(reflecting.channel)
    request = health_pb2.HealthCheckRequest()
    assert stub.Check(request, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
    watching = stub.Watch(request, timeout=10)
    assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
    watching.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="none"), timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_services_are_listed_to_whom_asks_more_than_once(reflecting):
    stub = reflection_pb2_grpc.ServerReflectionStub(reflecting.channel)
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")] * 2
    answers = list(stub.ServerReflectionInfo(iter(asked), timeout=10))
    assert len(answers) == 2
    for answer in answers:
        names = {service.name for service in answer.list_services_response.service}
        assert {"keylock.v1.ExplanationService", "grpc.health.v1.Health"} <= names
