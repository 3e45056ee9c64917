"""The services of the public port: one row for each, which registration, reflection and health go by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from keylock.inference import inference_pb2, inference_pb2_grpc
from keylock.v1 import explanation_pb2, explanation_pb2_grpc, license_pb2, license_pb2_grpc
from keylock_server.services.explanations import ExplanationService
from keylock_server.services.health import HealthService
from keylock_server.services.licenses import LicenseService
from keylock_server.services.parts import Parts
from keylock_server.services.predictions import PredictionService

__all__ = ["SERVICES", "Service", "register_services"]


@dataclass(frozen=True)
class Service:
    """A service of the public port.

    Attributes:
        descriptor: What the protocol says of it.
        make: Makes what answers its calls.
        register: Adds that to a server, or to whatever else takes handlers.
        needs_store: Whether it is not well while the license store is not.
    """

    descriptor: ServiceDescriptor
    make: Callable[[Parts], Any]
    register: Callable[[Any, Any], None]
    needs_store: bool

    @property
    def name(self) -> str:
        """Its full name."""
        return str(self.descriptor.full_name)


SERVICES: Final = (
    Service(
        inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
        PredictionService,
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server,
        needs_store=False,
    ),
    Service(
        explanation_pb2.DESCRIPTOR.services_by_name["ExplanationService"],
        ExplanationService,
        explanation_pb2_grpc.add_ExplanationServiceServicer_to_server,
        needs_store=True,
    ),
    Service(
        license_pb2.DESCRIPTOR.services_by_name["LicenseService"],
        LicenseService,
        license_pb2_grpc.add_LicenseServiceServicer_to_server,
        needs_store=True,
    ),
)


def register_services(server: grpc.aio.Server, parts: Parts, health_service: HealthService) -> None:
    """Adds every service, health, and reflection where it is set.

    Args:
        server: Of the public port.
        parts: What the services work with.
        health_service: Says how they are.
    """
    for service in SERVICES:
        service.register(service.make(parts), server)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    if parts.settings.reflection:
        names = (*(service.name for service in SERVICES), health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
