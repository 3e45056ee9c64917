"""`keylock.v1.AdminService`: what operators do to a running server, on a port of its own, with TLS certificates alone.

Beside it that port has the repository of the Open Inference Protocol, to load and unload models.

Whoever shows a certificate that the authority for operators signed may do all of it. What changes a license is logged
with the name in that certificate.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import grpc

from keylock import __version__
from keylock.errors import InputError, LicenseError, LicenseReason, UnknownNameError
from keylock.inference import inference_pb2_grpc
from keylock.licensing import StoredLicense
from keylock.v1 import admin_pb2 as pb
from keylock.v1 import admin_pb2_grpc as pb_grpc
from keylock_server.inference.runtime import ServedModel
from keylock_server.metering.meter import describe_windows, timestamp
from keylock_server.services.explanations import describe_model
from keylock_server.services.licenses import describe_license
from keylock_server.services.parts import Parts
from keylock_server.services.repository import RepositoryService
from keylock_server.settings import ServerSettings
from keylock_server.transport.fields import at_field
from keylock_server.transport.listening import listen
from keylock_server.transport.statuses import NoStoreError
from keylock_server.transport.tls import load_credentials

if TYPE_CHECKING:
    from keylock.store import LicenseStore
    from keylock_server.services.health import HealthChecks

__all__ = ["AdminService", "Served", "open_admin"]

_LOG: Final = logging.getLogger("keylock_server")
_MAX_TEXT: Final = 200
_MAX_MESSAGE_BYTES: Final = 64 * 1024

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Served:
    """The running server, as its operators see it.

    Attributes:
        parts: What it works with.
        store: Licenses; None where there are none.
        health: Knows what is wrong.
        drain: Begins to stop the server, in the event loop, and returns at once.
        draining: Tells whether that has begun.
    """

    parts: Parts
    store: "LicenseStore | None"
    health: "HealthChecks"
    drain: Callable[[], None]
    draining: Callable[[], bool]


class AdminService(pb_grpc.AdminServiceServicer):
    """Shows operators how the server is, lets them take licenses back, and drains it."""

    def __init__(self, served: Served) -> None:
        """Takes the server it is about."""
        self._served = served
        self._started, self._began_s = datetime.now(UTC), time.monotonic()

    async def GetStatus(self, request: pb.GetStatusRequest, context: _Context) -> pb.GetStatusResponse:  # noqa: N802
        """Describes the server and how it is."""
        served = self._served
        loaded = served.parts.models.served
        models = [_describe_model(model) for model in loaded]
        first = models[0] if models else pb.ServedModel()
        return pb.GetStatusResponse(
            version=__version__,
            started_at=timestamp(self._started),
            # Not the difference of two times: the clock may have been set back.
            uptime_s=time.monotonic() - self._began_s,
            model=first.model if models else None,
            explainers=first.explainers,
            providers=loaded[0].providers if loaded else (),
            key_id=first.key_id,
            canary=first.canary,
            models=models,
            store=_kind_of(served.store),
            problems=served.health.problems,
            pending=served.parts.batchers.held,
            running_calls=served.parts.running.count,
            draining=served.draining(),
        )

    async def RevokeLicense(self, request: pb.RevokeLicenseRequest, context: _Context) -> pb.RevokeLicenseResponse:  # noqa: N802
        """Revokes a license, a token, or what was issued before a time."""
        _check_target(request)
        store, now, why = self._store(), self._served.parts.now(), _note(request.why)
        if request.token_id:
            await asyncio.to_thread(store.revoke_token, request.token_id, at=now)
            _tell(context, "revoked the access token", request.token_id)
            return pb.RevokeLicenseResponse()
        if not request.HasField("issued_before"):
            stored = await _ask(store.revoke, request.license_id, at=now, why=why)
            _tell(context, "revoked the license", request.license_id)
            return pb.RevokeLicenseResponse(state=_describe(stored, now))
        with at_field("issued_before"):
            cutoff = _moment(request)
        license_id = request.license_id or None
        count = await _ask(store.refuse_before, cutoff, license_id=license_id)
        _tell(context, f"revoked what was issued before {cutoff.isoformat()} of", license_id or "all licenses")
        answer = pb.RevokeLicenseResponse(licenses=count)
        if license_id is not None:
            answer.state.CopyFrom(_describe(await _ask(store.get, license_id), now))
        return answer

    async def SuspendLicense(self, request: pb.SuspendLicenseRequest, context: _Context) -> pb.SuspendLicenseResponse:  # noqa: N802
        """Suspends a license until it is reinstated."""
        store, now = self._store(), self._served.parts.now()
        stored = await _ask(store.suspend, request.license_id, at=now, why=_note(request.why))
        _tell(context, "suspended the license", request.license_id)
        return pb.SuspendLicenseResponse(state=_describe(stored, now))

    async def ReinstateLicense(  # noqa: N802
        self, request: pb.ReinstateLicenseRequest, context: _Context
    ) -> pb.ReinstateLicenseResponse:
        """Ends a suspension."""
        stored = await _ask(self._store().reinstate, request.license_id)
        _tell(context, "reinstated the license", request.license_id)
        return pb.ReinstateLicenseResponse(state=_describe(stored, self._served.parts.now()))

    async def GetUsage(  # noqa: N802
        self, request: pb.AdminServiceGetUsageRequest, context: _Context
    ) -> pb.AdminServiceGetUsageResponse:
        """Returns what any license has used."""
        stored = await _ask(self._store().get, request.license_id)
        windows = await self._served.parts.meter.windows(stored.license)
        return pb.AdminServiceGetUsageResponse(license_id=stored.license.id, quotas=describe_windows(windows))

    async def Drain(self, request: pb.DrainRequest, context: _Context) -> pb.DrainResponse:  # noqa: N802
        """Begins to stop the server."""
        _tell(context, "drains", "the server")
        self._served.drain()
        return pb.DrainResponse(
            running_calls=self._served.parts.running.count, drain_s=self._served.parts.settings.drain_s
        )

    def _store(self) -> "LicenseStore":
        if self._served.store is None:
            raise NoStoreError
        return self._served.store


def open_admin(
    settings: ServerSettings, served: Served, interceptors: Sequence[grpc.aio.ServerInterceptor]
) -> tuple[grpc.aio.Server, int] | None:
    """Makes the server for operators, which listens and is not started.

    Args:
        settings: Where it listens, and its files of TLS.
        served: What it is about.
        interceptors: What surrounds its calls.

    Returns:
        The server and its port; None where the settings name no port for it.

    Raises:
        ServiceError: If a file of TLS cannot be used, or the address cannot be listened on.
    """
    certificate, key, client_ca = settings.admin_certificate, settings.admin_key, settings.admin_client_ca
    if settings.admin_port is None or certificate is None or key is None or client_ca is None:
        return None
    credentials = load_credentials(certificate, key, client_ca, reload_s=settings.tls_reload_s)
    server = grpc.aio.server(
        interceptors=interceptors,
        options=[("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)],
    )
    pb_grpc.add_AdminServiceServicer_to_server(AdminService(served), server)
    repository = RepositoryService(
        served.parts.models, ready=lambda: not served.draining(), patience_s=served.parts.settings.drain_s
    )
    inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(repository, server)
    return server, listen(server, settings.admin_host, settings.admin_port, credentials)


async def _ask(method: Callable[..., Any], *values: object, **options: object) -> Any:  # noqa: ANN401
    """Calls the store in a thread. That a license is unknown is not a fault of the operator's own credentials."""
    try:
        return await asyncio.to_thread(method, *values, **options)
    except LicenseError as error:
        if error.reason is not LicenseReason.UNKNOWN:
            raise
        license_id = options.get("license_id") or values[0]
        unknown = UnknownNameError("license", str(license_id), ())
        unknown.field = "license_id"
        raise unknown from None


def _check_target(request: pb.RevokeLicenseRequest) -> None:
    before = request.HasField("issued_before")
    if request.token_id:
        complete = not (request.license_id or before or request.all_licenses)
    elif request.license_id:
        complete = not request.all_licenses
    else:
        complete = before and request.all_licenses
    if not complete:
        raise InputError(
            "say what to revoke: license_id, license_id with issued_before, token_id, or issued_before with "
            "all_licenses"
        )


def _moment(request: pb.RevokeLicenseRequest) -> datetime:
    try:
        return request.issued_before.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InputError("the time is none of the years 1 to 9999: send another") from None


def _note(why: str) -> str:
    with at_field("why"):
        if len(why) > _MAX_TEXT:
            raise InputError(f"a note has at most {_MAX_TEXT} characters, not {len(why)}")
    return why


def _tell(context: _Context, what: str, which: str) -> None:
    """Logs what an operator did, under the name in the certificate."""
    names = list(context.auth_context().get("x509_common_name", ()))
    who = names[0].decode("utf-8", "replace") if names else "without a name"
    _LOG.warning("the operator %r %s %r", who[:_MAX_TEXT], what, which[:_MAX_TEXT])


def _describe_model(model: ServedModel) -> pb.ServedModel:
    return pb.ServedModel(
        model=describe_model(model),
        explainers=list(model.explainers),
        key_id=model.manifest.key.id if model.holds_key else "",
        canary=model.canary is not None,
    )


def _kind_of(store: "LicenseStore | None") -> str:
    if store is None:
        return ""
    return "postgresql" if store.database.path is None else "sqlite"


def _describe(stored: StoredLicense, now: datetime) -> pb.LicenseState:
    return pb.LicenseState(
        license=describe_license(stored.license),
        status=stored.status(now).value,
        revoked_at=timestamp(stored.revoked_at),
        suspended_at=timestamp(stored.suspended_at),
        refuse_before=timestamp(stored.refuse_before),
    )
