"""`keylock.v1.LicenseService`: what the caller's own license grants, what it used, and access tokens for it."""

import asyncio
from typing import Any, Final

import grpc

from keylock.errors import InputError, LicenseError, LicenseReason
from keylock.licensing import MAX_LIFETIME_S, MIN_LIFETIME_S, License, issue_access
from keylock.v1 import license_pb2 as pb
from keylock.v1 import license_pb2_grpc as pb_grpc
from keylock_server.auth.authentication import Caller
from keylock_server.metering.meter import describe_disclosure, describe_windows, timestamp
from keylock_server.services.parts import Parts
from keylock_server.transport.fields import at_field

__all__ = ["LicenseService", "describe_license"]

_LIFETIME_S: Final = 600

_Context = grpc.aio.ServicerContext[Any, Any]


class LicenseService(pb_grpc.LicenseServiceServicer):
    """Shows a caller its own license and never another."""

    def __init__(self, parts: Parts) -> None:
        """Takes what it works with."""
        self._parts = parts

    async def GetLicense(self, request: pb.GetLicenseRequest, context: _Context) -> pb.GetLicenseResponse:  # noqa: N802
        """Returns what the license presented grants."""
        identity = await asyncio.to_thread(self._parts.authenticator.require, Caller.of(context))
        return pb.GetLicenseResponse(license=describe_license(identity.license))

    async def GetUsage(self, request: pb.GetUsageRequest, context: _Context) -> pb.GetUsageResponse:  # noqa: N802
        """Returns what the license presented has used."""
        identity = await asyncio.to_thread(self._parts.authenticator.require, Caller.of(context))
        windows = await self._parts.meter.windows(identity.license)
        return pb.GetUsageResponse(
            license_id=identity.license.id,
            quotas=describe_windows(windows),
            disclosures=await self._parts.meter.disclosures(identity.license),
        )

    async def ProveReceipt(self, request: pb.ProveReceiptRequest, context: _Context) -> pb.ProveReceiptResponse:  # noqa: N802
        """Proves that a receipt of the license presented is in the audit log."""
        identity = await asyncio.to_thread(self._parts.authenticator.require, Caller.of(context))
        inclusion, consistency = await self._parts.prover.prove(
            identity.license.id, request.leaf_hash, since_size=request.since_size
        )
        return pb.ProveReceiptResponse(inclusion_proof=inclusion, consistency_proof=consistency)

    async def GetReceiptRevocations(  # noqa: N802
        self, request: pb.GetReceiptRevocationsRequest, context: _Context
    ) -> pb.GetReceiptRevocationsResponse:
        """Returns which receipt keys were taken back."""
        return pb.GetReceiptRevocationsResponse(revocations=await asyncio.to_thread(self._parts.prover.revocations))

    async def ExchangeToken(  # noqa: N802
        self, request: pb.ExchangeTokenRequest, context: _Context
    ) -> pb.ExchangeTokenResponse:
        """Exchanges the license presented for an access token."""
        caller = Caller.of(context)
        identity = await asyncio.to_thread(self._parts.authenticator.require, caller)
        if identity.token_id is not None:
            raise LicenseError(
                LicenseReason.MALFORMED, "an access token cannot be exchanged for another: present the license itself"
            )
        lifetime_s = request.lifetime_s or _LIFETIME_S
        with at_field("lifetime_s"):
            if not MIN_LIFETIME_S <= lifetime_s <= MAX_LIFETIME_S:
                raise InputError(f"an access token holds for {MIN_LIFETIME_S} to {MAX_LIFETIME_S} s, not {lifetime_s}")
        with at_field("bind_certificate"):
            if request.bind_certificate and caller.thumbprint is None:
                raise InputError("there is no TLS certificate to bind the token to: connect with one")
        token, access = issue_access(
            identity.presented,
            self._parts.access_key,
            now=self._parts.now(),
            lifetime_s=lifetime_s,
            ends=identity.license.expires,
            thumbprint=caller.thumbprint if request.bind_certificate else None,
        )
        return pb.ExchangeTokenResponse(access_token=token, expires=timestamp(access.expires))


def describe_license(license: License) -> pb.License:
    """Writes what a license grants into a message."""
    quota, rate = license.quota, license.rate
    return pb.License(
        id=license.id,
        customer=license.customer,
        models=license.models,
        explainers=license.explainers,
        issued_at=timestamp(license.issued_at),
        not_before=timestamp(license.not_before),
        expires=timestamp(license.expires),
        max_images=license.max_images or 0,
        max_pixels=license.max_pixels or 0,
        quota=pb.Quota(day=quota.day, month=quota.month, total=quota.total, overage=quota.overage),
        rate=None if rate is None else pb.Rate(per_second=rate.per_second, burst=rate.burst),
        similar_queries=license.similar_queries,
        disclosure=describe_disclosure(license),
    )
