"""Starting a server in an event loop: everything is opened and checked before it answers."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from keylock.crypto.signing import VerifyingKey
from keylock.errors import ServiceError, UnknownNameError
from keylock.licensing.receipts import ReceiptSigner
from keylock.licensing.revocations import RevocationFile
from keylock.v1 import license_pb2_grpc
from keylock_server.auth.authentication import Authenticator
from keylock_server.auth.offline_license import admit_offline_license
from keylock_server.inference.cores import available_cores, threads_per_batch
from keylock_server.inference.model_loader import Opener
from keylock_server.inference.models import Models
from keylock_server.inference.runtime import ServedModel
from keylock_server.inference.shared_secrets import Shared, access_keys
from keylock_server.metering.meter import Meter
from keylock_server.metering.response_padding import Alarm, EvenTimes
from keylock_server.metering.store_clock import compare_clocks
from keylock_server.operations.metrics import Metrics
from keylock_server.operations.tracing import open_tracing
from keylock_server.scheduling.batcher import Batchers, Limits
from keylock_server.scheduling.decoder_pool import Workers
from keylock_server.services.admin import Served
from keylock_server.services.health import Check, Condition, check_canaries
from keylock_server.services.licenses import LicenseService
from keylock_server.services.transparency import CheckpointSigner, Prover, load_receipt_key
from keylock_server.settings import ServerSettings, Source
from keylock_server.transport.descriptors import check_descriptors
from keylock_server.transport.interceptors import Errors, Logs, OtherServices, RequestIds, Requests, Running
from keylock_server.transport.listening import check_address, listen, write_ready_file
from keylock_server.transport.logs import name_calls
from keylock_server.transport.tls import load_credentials

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from keylock.store import LicenseStore

from keylock_server.operations.lifecycle import RunningServer, release
from keylock_server.services.registry import SERVICES, add_services, make_server

__all__ = ["start"]

_LOG: Final = logging.getLogger("keylock_server")
_DESCRIPTOR_CHECK_S: Final = 1.0
_RESERVATION_MARGIN_S: Final = 30.0


async def start(
    settings: ServerSettings,
    *,
    now: Callable[[], datetime] | None = None,
    tracer_provider: "TracerProvider | None" = None,
    shared: Shared | None = None,
) -> RunningServer:
    """Starts a server in the running event loop.

    Args:
        settings: What it does. Port 0 takes a free one; `RunningServer.port` says which.
        now: The clock that licenses are checked by; the system's when None.
        tracer_provider: Where spans go, of OpenTelemetry; that of the process when None.
        shared: What this process shares with others that listen on the same address; None where it is the only one.

    Returns:
        The server, which answers already.

    Raises:
        BundleError: If the bundle cannot be used.
        UnsealError: If the key does not open.
        KeySeedError: If the key seed cannot be read.
        SignatureError: If the public key of an issuer, or the receipt key, cannot be read.
        ServiceError: If the receipt key is not certified by a trusted issuer, the address cannot be listened on, or
            TLS, the device or the license store cannot be had.
    """
    name_calls()
    if shared is None and settings.workers != 1:
        raise ServiceError("several workers are processes of their own: start them with serve, or keylock serve")
    if shared is None:
        check_address(settings.host, settings.port)
        if settings.admin_port is not None:
            check_address(settings.admin_host, settings.admin_port)
    credentials = None
    if settings.tls_certificate is not None and settings.tls_key is not None:
        credentials = load_credentials(
            settings.tls_certificate, settings.tls_key, settings.tls_client_ca, reload_s=settings.tls_reload_s
        )
    opener = Opener(settings, seeds=None if shared is None else shared.seeds)
    models = Models(await asyncio.to_thread(_open_all, opener, settings), reopen=opener.open)
    keys = opener.keys
    token_keys = access_keys(settings) if shared is None else shared.access_keys
    clock = now or (lambda: datetime.now(UTC))
    receipt_key = None
    revocations = None if settings.receipt_revocations is None else RevocationFile(settings.receipt_revocations)
    if settings.receipt_key is not None:
        receipt_key = load_receipt_key(
            settings.receipt_key, issuers=tuple(keys()), now=clock(), revocations=revocations
        )
    store, meter = _open_store(settings, clock)
    if settings.offline_license is not None and store is not None:
        admit_offline_license(
            settings.offline_license,
            store,
            manifest=models.served[0].manifest,
            issuers=tuple(keys()),
            now=clock(),
            leeway_s=settings.leeway_s,
        )
    authenticator = Authenticator(
        keys=keys,
        access_keys=[key.verifying_key for key in token_keys],
        store=store,
        leeway_s=settings.leeway_s,
        now=clock,
    )
    database = None if store is None else store.database
    prover = Prover(database, receipt_key, issuers=keys, revocations=revocations, now=clock)
    licenses = LicenseService(authenticator, meter=meter, prover=prover, access_key=token_keys[0], now=clock)
    limits = Limits(
        queue=settings.queue,
        max_batch=settings.max_batch,
        batches=settings.batches,
        batch_delay_s=settings.batch_delay_ms / 1000,
        run_s=settings.run_s,
    )
    batchers = Batchers(limits, observe=lambda graph, rows: metrics.observe_run(graph, rows))
    models.on_unload(batchers.drop)
    workers = Workers(threads=max(2, available_cores() // settings.workers))
    health_service = health.aio.HealthServicer()
    condition = _make_condition(settings, models, store, meter, health_service, clock)
    metrics = Metrics(pending=lambda: batchers.held, problems=lambda: condition.problems)
    running_calls = Running()
    layers = (
        RequestIds(),
        Errors(),
        *open_tracing(tracer_provider),
        Logs(metrics.count),
        Requests(deadline_s=settings.deadline_s),
        OtherServices(),
    )
    server = make_server(settings, (running_calls, *layers), reuse_port=shared is not None)
    license_pb2_grpc.add_LicenseServiceServicer_to_server(licenses, server)
    receipts = None if receipt_key is None else ReceiptSigner(receipt_key)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    even_times = EvenTimes(wake=Alarm() if settings.even_times else None)
    predictions = add_services(
        server, settings, models, authenticator, batchers, workers, meter, receipts, even_times, running_calls.leaving
    )
    checkpoints = None
    if store is not None and receipt_key is not None:
        every_s = settings.checkpoint_every_s
        checkpoints = CheckpointSigner(store.database, receipt_key, every_s=every_s, now=clock)
    running: RunningServer | None = None
    try:
        port = listen(server, settings.host, settings.port, credentials)
        running = RunningServer(
            server,
            settings=settings,
            port=port,
            models=models,
            predictions=predictions,
            health_service=health_service,
            batchers=batchers,
            workers=workers,
            even_times=even_times,
            store=store,
            meter=meter,
            checkpoints=checkpoints,
            condition=condition,
            metrics=metrics,
            running=running_calls,
        )
        if settings.metrics_port is not None:
            running.metrics_port = metrics.serve(settings.metrics_host, settings.metrics_port)
        meter.start()
        if checkpoints is not None:
            checkpoints.start()
        await server.start()
        await condition.start()
        served = Served(
            models=models,
            store=store,
            meter=meter,
            condition=condition,
            batchers=batchers,
            running=running_calls,
            drain=running.begin_stop,
            draining=running.is_draining,
            drain_s=settings.drain_s,
            now=clock,
        )
        await running.serve_operators(served, layers)
        _announce(running, settings, tuple(keys()))
    except BaseException:
        if running is not None:
            await running.close_operators()
        await server.stop(0)
        await condition.close()
        await release(batchers, workers, even_times, metrics, meter, checkpoints, store)
        raise
    return running


def _open_all(opener: Opener, settings: ServerSettings) -> list[tuple[Source, ServedModel]]:
    opened = [(source, opener.open(source)) for source in settings.sources]
    offered = {entry.name for _, model in opened for entry in model.manifest.explainers}
    for name in settings.prices:
        # A misspelt name would be charged as if it had no price.
        if name != "*" and name not in offered:
            raise UnknownNameError("explainer in prices", name, [*offered, "*"])
    return opened


def _make_condition(
    settings: ServerSettings,
    models: Models,
    store: "LicenseStore | None",
    meter: Meter,
    health_service: Any,  # noqa: ANN401 - the health package has no types
    now: Callable[[], datetime],
) -> Condition:
    everything = ("", *SERVICES)
    checks = {}
    if store is not None:
        # Without its store a server predicts still, and a balancer that asks for the whole must not take it out.
        from keylock.store.identity import Presence

        licensed = frozenset(SERVICES[1:])
        presence = Presence(store.database, now=now)
        checks["store"] = Check(presence.confirm, every_s=settings.store_check_s, services=licensed, end=presence.leave)
        checks["metering"] = Check(meter.problem, every_s=settings.store_check_s, services=licensed)
        # Named and no more: to whom a wrong clock does harm is for the operator to say.
        checks["clock"] = Check(
            lambda: compare_clocks(store, now=now, leeway_s=settings.leeway_s),
            every_s=settings.store_check_s,
            services=frozenset(),
        )
    checks["descriptors"] = Check(check_descriptors, every_s=_DESCRIPTOR_CHECK_S, services=frozenset(everything))
    checks["canary"] = Check(
        lambda: check_canaries(models.served), every_s=settings.canary_check_s, services=frozenset(everything)
    )

    async def set_health(service: str, well: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await health_service.set(service, status.SERVING if well else status.NOT_SERVING)

    return Condition(checks, set_health=set_health, services=everything)


def _open_store(settings: ServerSettings, now: Callable[[], datetime]) -> "tuple[LicenseStore | None, Meter]":
    # Longer than any call lasts, so that a reservation is taken back from dead servers alone.
    lifetime_s = 2 * settings.deadline_s + _RESERVATION_MARGIN_S
    if settings.license_store is None:
        return None, Meter(None, prices=settings.prices, lifetime_s=lifetime_s, now=now)
    from keylock.store import Ledger, LicenseStore
    from keylock.store.logged_charges import record_charge

    store = LicenseStore(settings.license_store)
    ledger = Ledger(store.database, record=record_charge)
    return store, Meter(ledger, prices=settings.prices, lifetime_s=lifetime_s, now=now)


def _announce(running: RunningServer, settings: ServerSettings, keys: tuple[VerifyingKey, ...]) -> None:
    for model in running.models.served:
        _LOG.info(
            "serving %s (%s) on %s with %s: %s, explainers %s, licenses of %s",
            model.manifest.name,
            model.manifest.model_digest,
            running.target,
            model.providers[0],
            f"key {model.manifest.key.id}" if model.holds_key else "no key",
            ", ".join(model.explainers) or "none",
            ", ".join(key.key_id for key in keys),
        )
    _LOG.info(
        "%d of %d cores for each of %d runs at once in each of %d processes; up to %d images in a run",
        threads_per_batch(settings),
        available_cores(),
        settings.batches,
        settings.workers,
        settings.max_batch,
    )
    if settings.license_store is None and not settings.keyless:
        _LOG.warning(
            "there is no license store: revoked licenses are not noticed and use is not recorded; name one in the "
            "setting license_store"
        )
    if settings.tls_certificate is None and not _is_loopback(settings.host):
        _LOG.warning("listening on %s without TLS: licenses travel in the clear; set tls_certificate", settings.host)
    if settings.ready_file is not None:
        write_ready_file(settings.ready_file, running.target)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"
