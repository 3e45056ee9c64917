"""Starting a server in an event loop, and stopping it: it takes no new calls and lets the running ones finish."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from keylock.decoding_memory import DecodingMemory
from keylock.errors import ServiceError, UnknownNameError
from keylock.images import ImageLimits
from keylock.inference import inference_pb2, inference_pb2_grpc
from keylock.licensing.receipts import ReceiptSigner
from keylock.licensing.revocations import RevocationFile
from keylock.signing import VerifyingKey
from keylock.v1 import explanation_pb2, explanation_pb2_grpc, license_pb2, license_pb2_grpc
from keylock_server.admin import Served, open_admin
from keylock_server.authentication import Authenticator
from keylock_server.batcher import Batchers, Limits
from keylock_server.condition import Check, Condition, check_canaries
from keylock_server.cores import available_cores, threads_per_batch
from keylock_server.descriptors import allowed_connections, check_descriptors
from keylock_server.even_times import Alarm, EvenTimes
from keylock_server.explanations import ExplanationService
from keylock_server.interceptors import Errors, Interceptor, Logs, RequestIds, Requests, Running
from keylock_server.licenses import LicenseService
from keylock_server.listening import check_address, join, listen, write_ready_file
from keylock_server.logs import name_calls
from keylock_server.metering import Meter
from keylock_server.metrics import Metrics
from keylock_server.models import Models
from keylock_server.offline import admit_offline_license
from keylock_server.opening import Opener
from keylock_server.predictions import PredictionService
from keylock_server.proof import CheckpointSigner, Prover, load_receipt_key
from keylock_server.runtime import ServedModel
from keylock_server.settings import ServerSettings, Source
from keylock_server.shared import Shared, access_keys
from keylock_server.store_checks import compare_clocks
from keylock_server.streams import StreamLimits
from keylock_server.tls import load_credentials
from keylock_server.tracing import open_tracing
from keylock_server.workers import Workers

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from keylock.store import LicenseStore

__all__ = ["RunningServer", "start"]

_LOG: Final = logging.getLogger("keylock_server")
_SERVICES: Final = (
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
_FOREVER_S: Final = 1e6
_SETTLE_S: Final = 0.1
_DESCRIPTOR_CHECK_S: Final = 1.0
_RESERVATION_MARGIN_S: Final = 30.0


class RunningServer:
    """A server that answers.

    Attributes:
        host: Where it listens.
        port: The port it really listens on.
        models: What it serves.
        metrics_port: The port metrics are served on; None where they are not.
        admin_port: The port operators are served on; None where they are not.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        *,
        settings: ServerSettings,
        port: int,
        models: Models,
        predictions: PredictionService,
        health_service: Any,  # noqa: ANN401 - the health package has no types
        batchers: Batchers,
        workers: Workers,
        even_times: EvenTimes,
        store: "LicenseStore | None",
        meter: Meter,
        checkpoints: CheckpointSigner | None,
        condition: Condition,
        metrics: Metrics,
        running: Running,
    ) -> None:
        """Takes what `start` has made; call that instead."""
        self._server: grpc.aio.Server | None = server
        self._running = running
        self._stopping: asyncio.Task[None] | None = None
        self._begun: asyncio.Task[None] | None = None
        self._told = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stopped = asyncio.Event()
        self._settings = settings
        self._predictions = predictions
        self._health = health_service
        self._batchers = batchers
        self._workers = workers
        self._even_times = even_times
        self._store = store
        self._meter = meter
        self._checkpoints = checkpoints
        self._condition = condition
        self._metrics = metrics
        self.metrics_port: int | None = None
        self.admin_port: int | None = None
        self._admin: grpc.aio.Server | None = None
        self.host, self.port, self.models = settings.host, port, models

    @property
    def model(self) -> ServedModel:
        """The first model that is loaded."""
        return self.models.served[0]

    @property
    def target(self) -> str:
        """What clients connect to, `host:port`."""
        return join(self.host, self.port)

    def describe(self) -> dict[str, Any]:
        """Says what it serves and where, in values that JSON has; the first model stands at the top as well."""
        models = [
            {
                "model": model.manifest.name,
                "model_version": model.version,
                "model_digest": model.manifest.model_digest,
                "explainers": list(model.explainers),
                "key_id": model.manifest.key.id if model.holds_key else None,
                "provider": model.providers[0],
            }
            for model in self.models.served
        ]
        where = {"target": self.target, "host": self.host, "port": self.port}
        ports = {"admin_port": self.admin_port, "metrics_port": self.metrics_port}
        return {**where, **models[0], **ports, "models": models}

    def is_draining(self) -> bool:
        """Tells whether it takes no new calls any more."""
        return self._server is None

    async def serve_operators(self, served: Served, interceptors: Sequence[Interceptor]) -> None:
        """Begins to serve operators, if the settings say so.

        Raises:
            ServiceError: If a file of TLS cannot be used, or the address cannot be listened on.
        """
        opened = open_admin(self._settings, served, interceptors)
        if opened is not None:
            self._admin, self.admin_port = opened
            await self._admin.start()

    async def close_operators(self) -> None:
        """Ends serving operators."""
        if self._admin is not None:
            await self._admin.stop(_SETTLE_S)

    def begin_stop(self) -> None:
        """Begins what `stop` does, in the running event loop, and returns at once."""
        if self._begun is None:
            self._begun = asyncio.create_task(self.stop())
        self._told.set()

    async def wait_for_stop(self) -> None:
        """Returns when an operator has told the server to stop."""
        await self._told.wait()

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._stopped.wait()

    async def stop(self, *, drain_s: float | None = None) -> None:
        """Takes no new calls, lets the running ones finish and stops. May be called again, to stop sooner.

        Args:
            drain_s: How long they may go on, in seconds; as set when None.
        """
        if self._server is not None:
            self._stopping = asyncio.create_task(self._drain(self._server))
            # A server of grpc.aio must go while its event loop runs, or it complains when it is collected.
            self._server = None
        if self._stopping is None:
            return
        await asyncio.wait({self._stopping}, timeout=self._settings.drain_s if drain_s is None else drain_s)
        self._hurry.set()
        await self._stopping

    async def _drain(self, server: grpc.aio.Server) -> None:
        """Stops when no call of keylock's services runs any more, or when told to hurry.

        The server's own grace period would also wait for streams that never end, such as watchers of its health.
        """
        self._predictions.ready = False
        self._running.leaving.set()
        await self._condition.close()
        await self._health.enter_graceful_shutdown()
        refusing = asyncio.create_task(server.stop(_FOREVER_S))
        await asyncio.sleep(_SETTLE_S)  # By now every accepted call is counted, and the watchers have been told.
        waiting = [asyncio.create_task(self._running.idle()), asyncio.create_task(self._hurry.wait())]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in (refusing, *waiting):
            task.cancel()
        await asyncio.gather(refusing, *waiting, return_exceptions=True)
        await server.stop(None)
        await self.models.close()
        # Last, so that operators can watch the others finish.
        await self.close_operators()
        await _release(
            self._batchers,
            self._workers,
            self._even_times,
            self._metrics,
            self._meter,
            self._checkpoints,
            self._store,
        )
        if self._settings.ready_file is not None:
            self._settings.ready_file.unlink(missing_ok=True)
        self._stopped.set()


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
    workers = Workers(threads=max(1, available_cores() // settings.workers))
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
    )
    server = _make_server(settings, (running_calls, *layers), reuse_port=shared is not None)
    license_pb2_grpc.add_LicenseServiceServicer_to_server(licenses, server)
    receipts = None if receipt_key is None else ReceiptSigner(receipt_key)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    even_times = EvenTimes(wake=Alarm() if settings.even_times else None)
    predictions = _add_services(
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
        await _release(batchers, workers, even_times, metrics, meter, checkpoints, store)
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


async def _release(
    batchers: Batchers,
    workers: Workers,
    even_times: EvenTimes,
    metrics: Metrics,
    meter: Meter,
    checkpoints: CheckpointSigner | None,
    store: "LicenseStore | None",
) -> None:
    """Closes what a server works with, the store last, because the others still write to it."""
    workers.close()
    batchers.close()
    even_times.close()
    metrics.close()
    await meter.close()
    if checkpoints is not None:
        await checkpoints.close()
    if store is not None:
        store.close()


def _make_server(settings: ServerSettings, interceptors: Sequence[Interceptor], *, reuse_port: bool) -> grpc.aio.Server:
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


def _add_services(
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
    limits = ImageLimits(
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
        memory=DecodingMemory(settings.decoding_memory_bytes),
    )
    predictions = PredictionService(
        models, batchers=batchers, workers=workers, limits=limits, max_images=settings.max_images
    )
    explanations = ExplanationService(
        models,
        authenticator=authenticator,
        batchers=batchers,
        workers=workers,
        meter=meter,
        limits=limits,
        max_images=settings.max_images,
        max_answer_bytes=settings.max_message_bytes,
        refuse_unlicensed=settings.unlicensed_explanations == "refuse",
        stream_limits=StreamLimits(in_flight=settings.stream_in_flight, image_s=settings.deadline_s),
        leaving=leaving,
        even_times=even_times,
        receipts=receipts,
    )
    inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(predictions, server)
    explanation_pb2_grpc.add_ExplanationServiceServicer_to_server(explanations, server)
    if settings.reflection:
        names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return predictions


def _make_condition(
    settings: ServerSettings,
    models: Models,
    store: "LicenseStore | None",
    meter: Meter,
    health_service: Any,  # noqa: ANN401 - the health package has no types
    now: Callable[[], datetime],
) -> Condition:
    everything = ("", *_SERVICES)
    checks = {}
    if store is not None:
        # Without its store a server predicts still, and a balancer that asks for the whole must not take it out.
        from keylock.store.identity import Presence

        licensed = frozenset(_SERVICES[1:])
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
    from keylock.store.audit import record_charge

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
