"""The gRPC server of the public port, with its limits."""

from collections.abc import Sequence
from typing import Final

import grpc

from keylock_server.settings import ServerSettings
from keylock_server.transport.descriptors import allowed_connections
from keylock_server.transport.interceptors import Together

__all__ = ["make_server"]

_COMPRESSIONS: Final = {
    "none": grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}
# gRPC's own limit answers without details, so it lies well above the one of the queues and is a backstop.
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
        interceptors=[Together(interceptors)],
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
