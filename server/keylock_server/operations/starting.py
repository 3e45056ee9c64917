"""Starting a server in an event loop: everything is opened and checked before it answers.

What was opened is closed in the opposite order, by one stack: when the start fails, and when the server stops.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple

import grpc

from keylock.crypto.signing import SigningKey, VerifyingKey
from keylock.errors import ServiceError, UnknownNameError
from keylock.files.limits import available_cores
from keylock.licensing.receipts import ReceiptSigner
from keylock.licensing.revocations import RevocationFile
from keylock_server.auth.authentication import Authenticator
from keylock_server.auth.offline_license import admit_offline_license
from keylock_server.guard import Guard
from keylock_server.http.opening import check_http, open_http
from keylock_server.inference.cores import cores_of_process, threads_per_batch
from keylock_server.inference.model_loader import Opener
from keylock_server.inference.models import Models
from keylock_server.inference.runtime import ServedModel
from keylock_server.inference.shared_secrets import Shared, access_keys
from keylock_server.metering.meter import Meter
from keylock_server.metering.response_padding import Alarm, ResponsePadding
from keylock_server.operations.checks import Health, make_health
from keylock_server.operations.lifecycle import RunningServer
from keylock_server.operations.metrics import Metrics
from keylock_server.operations.tracing import open_tracing
from keylock_server.scheduling.batcher import Batchers, Limits
from keylock_server.scheduling.decoder_pool import DecoderPool
from keylock_server.services.admin import Served
from keylock_server.services.parts import Parts
from keylock_server.services.query_gate import QueryGate
from keylock_server.services.registry import register_services
from keylock_server.services.transparency import CheckpointSigner, Prover, load_receipt_key
from keylock_server.settings import ServerSettings, Source
from keylock_server.transport.interceptors import Errors, Logs, OtherServices, RequestIds, Requests, Running
from keylock_server.transport.listening import check_address, forget_ready_file, join, listen, write_ready_file
from keylock_server.transport.logs import name_calls
from keylock_server.transport.public_server import make_server
from keylock_server.transport.tls import load_credentials

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from keylock.store import Ledger, LicenseStore
    from keylock_server.http.serving import HttpServer

__all__ = ["start"]

_LOG: Final = logging.getLogger("keylock_server")
_RESERVATION_MARGIN_S: Final = 30.0

_Clock = Callable[[], datetime]


async def start(
    settings: ServerSettings,
    *,
    now: _Clock | None = None,
    tracer_provider: "TracerProvider | None" = None,
    shared: Shared | None = None,
    guard: Guard | None = None,
) -> RunningServer:
    """Starts a server in the running event loop.

    Args:
        settings: What it does. Port 0 takes a free one; `RunningServer.port` says which.
        now: The clock that licenses are checked by; the system's when None.
        tracer_provider: Where spans go, of OpenTelemetry; that of the process when None.
        shared: What this process shares with others that listen on the same address; None where it is the only one.
        guard: The query guard, where it is made already; otherwise one is made, unless the settings have none.

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
    clock = now or (lambda: datetime.now(UTC))
    credentials = _check_front(settings, shared)
    forget_ready_file(settings.ready_file)
    async with AsyncExitStack() as closing:
        opener = Opener(settings, seeds=None if shared is None else shared.seeds)
        opening = asyncio.create_task(asyncio.to_thread(_open_all, opener, settings))
        if settings.license_store is not None:
            # What takes long to import is, while graphs are opened without Python.
            await asyncio.to_thread(import_module, "keylock.store")
        models = Models(await opening, reopen=opener.open)
        metrics = Metrics(
            pending=lambda: parts.batchers.held,
            checks=lambda: {name: name in health.checks.problems for name in health.checks.names},
            log_entries=lambda: 0 if licensing.checkpoints is None else licensing.checkpoints.size,
        )
        closing.callback(metrics.close)
        licensing = _open_licensing(settings, shared, opener, models, clock, closing, metrics)
        guard = guard or settings.make_guard()
        parts = _make_parts(settings, models, licensing, metrics, clock, closing, guard)
        health = make_health(settings, models, licensing.store, licensing.meter, clock)
        closing.push_async_callback(health.checks.close)
        layers = (
            RequestIds(),
            Errors(),
            *open_tracing(tracer_provider),
            Logs(metrics.count),
            Requests(deadline_s=settings.deadline_s),
            OtherServices(),
        )
        server = make_server(settings, (parts.running, *layers), reuse_port=shared is not None)
        closing.push_async_callback(server.stop, 0)
        register_services(server, parts, health.service)
        port = listen(server, settings.host, settings.port, credentials)
        http = await open_http(settings, parts, health.service, (parts.running, *layers), reuse_port=shared is not None)
        if http is not None:
            closing.push_async_callback(http.close)
        running = RunningServer(server, port=port, parts=parts, health=health, http=http)
        closing.push_async_callback(running.close_operators)
        if settings.metrics_port is not None:
            running.metrics_port = metrics.serve(settings.metrics_host, settings.metrics_port)
        await _begin(server, http, licensing, health)
        served = Served(parts, licensing.store, health.checks, running.begin_stop, running.is_draining)
        await running.serve_operators(served, layers)
        _announce(running, settings, tuple(opener.keys()))
        running.closes_with(closing.pop_all())
    return running


class _Licensing(NamedTuple):
    """What licenses are checked, charged and proved by."""

    store: "LicenseStore | None"
    meter: Meter
    checkpoints: CheckpointSigner | None
    receipts: ReceiptSigner | None
    authenticator: Authenticator
    prover: Prover
    access_key: SigningKey


def _check_front(settings: ServerSettings, shared: Shared | None) -> grpc.ServerCredentials | None:
    """Checks where the server is to listen, and returns its TLS credentials."""
    if shared is None and settings.workers != 1:
        raise ServiceError("several workers are processes of their own: start them with serve, or keylock serve")
    check_http(settings)
    if shared is None:
        check_address(settings.host, settings.port)
        if settings.http_port is not None:
            check_address(settings.host, settings.http_port)
        if settings.admin_port is not None:
            check_address(settings.admin_host, settings.admin_port)
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return load_credentials(
        settings.tls_certificate, settings.tls_key, settings.tls_client_ca, reload_s=settings.tls_reload_s
    )


def _open_all(opener: Opener, settings: ServerSettings) -> list[tuple[Source, ServedModel]]:
    opened = [(source, opener.open(source)) for source in settings.sources]
    offered = {entry.name for _, model in opened for entry in model.manifest.explainers}
    for name in settings.prices:
        # A misspelt name would be charged as if it had no price.
        if name != "*" and name not in offered:
            raise UnknownNameError("explainer in prices", name, [*offered, "*"])
    return opened


def _open_licensing(
    settings: ServerSettings,
    shared: Shared | None,
    opener: Opener,
    models: Models,
    now: _Clock,
    closing: AsyncExitStack,
    metrics: Metrics,
) -> _Licensing:
    token_keys = access_keys(settings) if shared is None else shared.access_keys
    revocations = None if settings.receipt_revocations is None else RevocationFile(settings.receipt_revocations)
    receipt_key = None
    if settings.receipt_key is not None:
        receipt_key = load_receipt_key(
            settings.receipt_key, issuers=tuple(opener.keys()), now=now(), revocations=revocations
        )
    store, meter = _open_store(settings, now, metrics)
    checkpoints = None
    if store is not None:
        # Closed last, because the others still write to it.
        closing.callback(store.close)
        if settings.offline_license is not None:
            admit_offline_license(
                settings.offline_license,
                store,
                manifest=models.served[0].manifest,
                issuers=tuple(opener.keys()),
                now=now(),
                leeway_s=settings.leeway_s,
            )
        if receipt_key is not None:
            checkpoints = CheckpointSigner(store.database, receipt_key, every_s=settings.checkpoint_every_s, now=now)
            closing.push_async_callback(checkpoints.close)
    closing.push_async_callback(meter.close)
    authenticator = Authenticator(
        keys=opener.keys,
        access_keys=[key.verifying_key for key in token_keys],
        store=store,
        leeway_s=settings.leeway_s,
        now=now,
    )
    database = None if store is None else store.database
    prover = Prover(database, receipt_key, issuers=opener.keys, revocations=revocations, now=now)
    receipts = None if receipt_key is None else ReceiptSigner(receipt_key)
    return _Licensing(store, meter, checkpoints, receipts, authenticator, prover, token_keys[0])


def _open_store(settings: ServerSettings, now: _Clock, metrics: Metrics) -> "tuple[LicenseStore | None, Meter]":
    # Longer than any call lasts, so that a reservation is taken back from dead servers alone.
    lifetime_s = 2 * settings.deadline_s + _RESERVATION_MARGIN_S

    def meter(ledger: "Ledger | None") -> Meter:
        observe = metrics.count_units
        return Meter(ledger, prices=settings.prices, lifetime_s=lifetime_s, now=now, observe=observe)

    if settings.license_store is None:
        return None, meter(None)
    from keylock.store import Ledger, LicenseStore
    from keylock.store.logged_charges import record_charge

    store = LicenseStore(settings.license_store)
    return store, meter(Ledger(store.database, record=record_charge))


def _make_parts(
    settings: ServerSettings,
    models: Models,
    licensing: _Licensing,
    metrics: Metrics,
    now: _Clock,
    closing: AsyncExitStack,
    guard: Guard | None,
) -> Parts:
    limits = Limits(
        queue=settings.queue,
        max_batch=settings.max_batch,
        batches=settings.batches,
        batch_delay_s=settings.batch_delay_ms / 1000,
        run_s=settings.run_s,
    )
    padding = ResponsePadding(wake=Alarm() if settings.pad_response_times else None)
    batchers = Batchers(limits, observe=metrics.observe_run)
    pool = DecoderPool(threads=max(2, cores_of_process(settings)))
    for part in (padding, batchers, pool):
        closing.callback(part.close)
    models.on_unload(batchers.drop)
    gate = QueryGate(
        guard, settings.query_guard, pool=pool, authenticator=licensing.authenticator, observe=metrics.count_guarded
    )
    return Parts(
        settings,
        now=now,
        models=models,
        batchers=batchers,
        pool=pool,
        authenticator=licensing.authenticator,
        access_key=licensing.access_key,
        meter=licensing.meter,
        gate=gate,
        padding=padding,
        prover=licensing.prover,
        receipts=licensing.receipts,
        running=Running(),
    )


async def _begin(server: grpc.aio.Server, http: "HttpServer | None", licensing: _Licensing, health: Health) -> None:
    """Begins to work: to take back reservations, to sign checkpoints, to answer, to look after itself."""
    licensing.meter.start()
    if licensing.checkpoints is not None:
        licensing.checkpoints.start()
    await server.start()
    if http is not None:
        await http.start()
    await health.checks.start()


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
    if running.http_port is not None:
        _LOG.info("HTTP on %s", join(settings.host, running.http_port))
    if settings.query_guard != "off":
        _LOG.info(
            "query guard: %s near copies of a picture within %g s: %d with scores, labels up to %d; %d bytes",
            settings.query_guard,
            settings.query_guard_window_s,
            settings.query_guard_scores,
            settings.query_guard_labels,
            settings.query_guard_memory_bytes,
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
