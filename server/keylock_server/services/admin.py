"""`keylock.v1.AdminService`: what operators do to a running server, on a port of its own, with TLS certificates alone.

Beside it that port has the repository of the Open Inference Protocol, to load and unload models.

Whoever shows a certificate that the authority for operators signed may do all of it. What changes a license is logged
with the name in that certificate.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc

from keylock import __version__
from keylock.errors import InputError, LicenseError, LicenseReason, UnknownNameError
from keylock.inference import inference_pb2_grpc
from keylock.licensing import StoredLicense
from keylock.v1 import admin_pb2 as pb
from keylock.v1 import admin_pb2_grpc as pb_grpc
from keylock_server.inference.runtime import ServedModel
from keylock_server.metering.meter import describe_windows, timestamp
from keylock_server.services.licenses import describe_license
from keylock_server.services.model_descriptions import describe_model
from keylock_server.services.operators import log_change, operator_of
from keylock_server.services.parts import Parts
from keylock_server.services.repository import RepositoryService
from keylock_server.settings import ServerSettings
from keylock_server.transport.fields import at_field
from keylock_server.transport.interceptors import Together
from keylock_server.transport.listening import listen
from keylock_server.transport.statuses import NoStoreError
from keylock_server.transport.tls import load_credentials

if TYPE_CHECKING:
    from keylock.store import LicenseStore
    from keylock_server.services.health import HealthChecks

__all__ = ["AdminService", "Served", "open_admin"]

T = TypeVar("T")

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
            query_guard=await served.parts.gate.status(),
        )

    async def RevokeLicense(self, request: pb.RevokeLicenseRequest, context: _Context) -> pb.RevokeLicenseResponse:  # noqa: N802
        """Revokes a license, a token, or what was issued before a time."""
        _check_target(request)
        store, now, why, license_id = self._store(), self._served.parts.now(), _note(request.why), request.license_id
        if token_id := request.token_id:
            with at_field("token_id"):
                await _change(
                    context, "revoked the access token", token_id, lambda: store.revoke_token(token_id, at=now)
                )
            return pb.RevokeLicenseResponse()
        if not request.HasField("issued_before"):
            stored = await _change(
                context, "revoked the license", license_id, lambda: store.revoke(license_id, at=now, why=why)
            )
            return pb.RevokeLicenseResponse(state=_describe(stored, now))
        with at_field("issued_before"):
            cutoff = _moment(request)
        count = await _change(
            context,
            f"revoked what was issued before {cutoff.isoformat()} of",
            license_id or "all licenses",
            lambda: store.refuse_before(cutoff, license_id=license_id or None),
        )
        answer = pb.RevokeLicenseResponse(licenses=count)
        if license_id:
            answer.state.CopyFrom(_describe(await _ask(license_id, lambda: store.get(license_id)), now))
        return answer

    async def SuspendLicense(self, request: pb.SuspendLicenseRequest, context: _Context) -> pb.SuspendLicenseResponse:  # noqa: N802
        """Suspends a license until it is reinstated."""
        store, now, why, license_id = self._store(), self._served.parts.now(), _note(request.why), request.license_id
        stored = await _change(
            context,
            "suspended the license",
            license_id,
            lambda: store.suspend(license_id, at=now, why=why, unpaid=request.unpaid),
        )
        return pb.SuspendLicenseResponse(state=_describe(stored, now))

    async def ReinstateLicense(  # noqa: N802
        self, request: pb.ReinstateLicenseRequest, context: _Context
    ) -> pb.ReinstateLicenseResponse:
        """Ends a suspension."""
        store, license_id = self._store(), request.license_id
        stored = await _change(context, "reinstated the license", license_id, lambda: store.reinstate(license_id))
        return pb.ReinstateLicenseResponse(state=_describe(stored, self._served.parts.now()))

    async def GetUsage(  # noqa: N802
        self, request: pb.AdminServiceGetUsageRequest, context: _Context
    ) -> pb.AdminServiceGetUsageResponse:
        """Returns what any license has used."""
        store, license_id = self._store(), request.license_id
        stored = await _ask(license_id, lambda: store.get(license_id))
        windows = await self._served.parts.meter.windows(stored.license)
        return pb.AdminServiceGetUsageResponse(
            license_id=stored.license.id,
            quotas=describe_windows(windows),
            disclosures=await self._served.parts.meter.disclosures(stored.license),
        )

    async def Drain(self, request: pb.DrainRequest, context: _Context) -> pb.DrainResponse:  # noqa: N802
        """Begins to stop the server."""
        log_change(operator_of(context), "drains", "the server")
        self._served.drain()
        settings = self._served.parts.settings
        return pb.DrainResponse(
            running_calls=self._served.parts.running.count, drain_s=settings.notice_s + settings.drain_s
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
        interceptors=[Together(interceptors)],
        options=[("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)],
    )
    pb_grpc.add_AdminServiceServicer_to_server(AdminService(served), server)
    repository = RepositoryService(
        served.parts.models, ready=lambda: not served.draining(), patience_s=served.parts.settings.drain_s
    )
    inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(repository, server)
    return server, listen(server, settings.admin_host, settings.admin_port, credentials)


async def _ask(license_id: str, work: Callable[[], T]) -> T:
    """Asks the store in a thread. That a license is unknown is not a fault of the operator's own credentials."""
    try:
        return await asyncio.to_thread(work)
    except LicenseError as error:
        if error.reason is not LicenseReason.UNKNOWN:
            raise
        with at_field("license_id"):
            raise UnknownNameError("license", license_id, ()) from None


async def _change(context: _Context, what: str, which: str, work: Callable[[], T]) -> T:
    """Changes something in the store and logs it, in one thread: it is changed also where its operator goes away."""
    operator = operator_of(context)

    def change() -> T:
        changed = work()
        log_change(operator, what, which)
        return changed

    return await _ask(which, change)


def _check_target(request: pb.RevokeLicenseRequest) -> None:
    before = request.HasField("issued_before")
    if request.token_id:
        field, complete = "token_id", not (request.license_id or before or request.all_licenses)
    elif request.license_id:
        field, complete = "all_licenses", not request.all_licenses
    else:
        field, complete = "all_licenses" if before else "license_id", before and request.all_licenses
    with at_field(field):
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
        suspended_unpaid=stored.suspended_unpaid,
    )
