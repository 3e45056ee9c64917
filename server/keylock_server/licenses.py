"""`keylock.v1.LicenseService`: what the caller's own license grants."""

import asyncio
from datetime import datetime
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from keylock.errors import LicenseError, LicenseReason
from keylock.v1 import license_pb2 as pb
from keylock.v1 import license_pb2_grpc as pb_grpc
from keylock_server.authentication import Authenticator

__all__ = ["LicenseService"]


class LicenseService(pb_grpc.LicenseServiceServicer):
    """Shows a caller its own license and never another."""

    def __init__(self, authenticator: Authenticator) -> None:
        """Makes the service.

        Args:
            authenticator: Verifies licenses.
        """
        self._authenticator = authenticator

    async def GetLicense(  # noqa: N802
        self, request: pb.GetLicenseRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetLicenseResponse:
        """Returns the claims of the license presented."""
        granted = await asyncio.to_thread(self._authenticator.authenticate, context.invocation_metadata() or ())
        if granted is None:
            raise LicenseError(
                LicenseReason.MISSING, "no license was presented: send one as 'authorization: Bearer ...'"
            )
        return pb.GetLicenseResponse(
            license=pb.License(
                id=granted.id,
                customer=granted.customer,
                models=granted.models,
                explainers=granted.explainers,
                issued_at=_timestamp(granted.issued_at),
                not_before=_timestamp(granted.not_before),
                expires=_timestamp(granted.expires),
            )
        )


def _timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
