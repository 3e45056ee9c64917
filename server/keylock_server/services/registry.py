"""The gRPC server of the public port: its limits, and the services that it has."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from keylock.imaging.decoding import ImageLimits
from keylock.inference import inference_pb2, inference_pb2_grpc
from keylock.licensing.receipts import ReceiptSigner
from keylock.v1 import explanation_pb2, explanation_pb2_grpc, license_pb2
from keylock_server.auth.authentication import Authenticator
from keylock_server.inference.models import Models
from keylock_server.metering.meter import Meter
from keylock_server.metering.response_padding import EvenTimes
from keylock_server.scheduling.batcher import Batchers
from keylock_server.scheduling.decoder_pool import Workers
from keylock_server.scheduling.decoding import Decoder, DecodingMemory
from keylock_server.services.explanations import ExplanationService
from keylock_server.services.predictions import PredictionService
from keylock_server.services.streams import StreamLimits
from keylock_server.settings import ServerSettings
from keylock_server.transport.descriptors import allowed_connections

if TYPE_CHECKING:
    pass

__all__ = ["SERVICES", "add_services", "make_server"]

SERVICES: Final = (
    inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
    explanation_pb2.DESCRIPTOR.services_by_name["ExplanationService"].full_name,
    license_pb2.DESCRIPTOR.services_by_name["LicenseService"].full_name,
)
_COMPRESSIONS: Final = {
    "none": grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}
# gRPC's own limit answers without details, so it lies well above the one of the `Batchers` and is a backstop.
_BACKSTOP_CALLS: Final = 1024


def make_server(
    settings: ServerSettings, interceptors: Sequence[grpc.aio.ServerInterceptor], *, reuse_port: bool
) -> grpc.aio.Server:
    """Makes the server of the public port.

    Args:
        settings: Its limits.
        interceptors: What every call goes through, outermost first.
        reuse_port: Whether other processes listen on the same address.
    """
    connections = allowed_connections()
    return grpc.aio.server(
        interceptors=interceptors,
        compression=_COMPRESSIONS[settings.compression],
        maximum_concurrent_rpcs=_BACKSTOP_CALLS + settings.queue,
        options=[
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            # By default a second server on the same port would start and take half of the calls.
            ("grpc.so_reuseport", int(reuse_port)),
            *([] if connections is None else [("grpc.max_allowed_incoming_connections", connections)]),
        ],
    )


def add_services(
    server: grpc.aio.Server,
    settings: ServerSettings,
    models: Models,
    authenticator: Authenticator,
    batchers: Batchers,
    workers: Workers,
    meter: Meter,
    receipts: ReceiptSigner | None,
    even_times: EvenTimes,
    leaving: asyncio.Event,
) -> PredictionService:
    """Adds the services that predict and explain, and reflection where it is set; returns the one that predicts."""
    limits = ImageLimits(
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
    )
    # One thread stays for small images.
    decoder = Decoder(workers, DecodingMemory(settings.decoding_memory_bytes, at_once=max(1, workers.threads - 1)))
    predictions = PredictionService(
        models,
        batchers=batchers,
        decoder=decoder,
        limits=limits,
        max_ratio=settings.max_image_ratio,
        max_images=settings.max_images,
    )
    explanations = ExplanationService(
        models,
        authenticator=authenticator,
        batchers=batchers,
        workers=workers,
        decoder=decoder,
        meter=meter,
        limits=limits,
        max_ratio=settings.max_image_ratio,
        max_images=settings.max_images,
        max_answer_bytes=settings.max_message_bytes,
        answer_stamped=settings.stamped_images == "answer",
        refuse_unlicensed=settings.unlicensed_explanations == "refuse",
        stream_limits=StreamLimits(in_flight=settings.stream_in_flight, image_s=settings.deadline_s),
        leaving=leaving,
        even_times=even_times,
        receipts=receipts,
    )
    inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(predictions, server)
    explanation_pb2_grpc.add_ExplanationServiceServicer_to_server(explanations, server)
    if settings.reflection:
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return predictions
