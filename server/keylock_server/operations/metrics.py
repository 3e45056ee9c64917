"""Prometheus metrics with labels that callers cannot multiply: methods and statuses there are, explainers there are.

They are served over HTTP at an address of their own, which is that of this machine unless set otherwise.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from keylock.errors import ServiceError

__all__ = ["Metrics"]

_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)
_IMAGES: Final = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counts calls; one object for each server."""

    def __init__(
        self,
        *,
        pending: Callable[[], int],
        checks: Callable[[], Mapping[str, bool]],
        log_entries: Callable[[], int],
    ) -> None:
        """Makes the metrics, all zero.

        Args:
            pending: Returns how many images are accepted and not answered yet.
            checks: Returns for each check of the server, by its name, whether it finds something wrong.
            log_entries: Returns how many entries of the audit log are under a signed checkpoint.
        """
        self._registry = CollectorRegistry()
        self._calls = Counter(
            "keylock_calls", "Calls that were answered.", ["method", "code", "reason"], registry=self._registry
        )
        self._seconds = Histogram(
            "keylock_call_seconds", "How long calls took.", ["method"], buckets=_SECONDS, registry=self._registry
        )
        Gauge("keylock_pending_images", "Images accepted and not answered yet.", registry=self._registry).set_function(
            pending
        )
        self._run_images = Histogram(
            "keylock_run_images", "Images that shared a run.", ["graph"], buckets=_IMAGES, registry=self._registry
        )
        self._guarded = Counter(
            "keylock_guarded_images",
            "Images that the query guard looked at: near copies, identical to others, none of both, or refused; those "
            "that would have been, where it only counts.",
            ["outcome"],
            registry=self._registry,
        )
        self._stop: Callable[[], None] | None = None
        Gauge("keylock_problems", "Checks that find something wrong.", registry=self._registry).set_function(
            lambda: sum(checks().values())
        )
        self._registry.register(_Checks(checks))
        self._units = Counter(
            "keylock_charged_units", "Units that were charged.", ["model", "explainer"], registry=self._registry
        )
        Gauge(
            "keylock_log_entries", "Entries of the audit log under a signed checkpoint.", registry=self._registry
        ).set_function(log_entries)

    def count(self, method: str, code: str, reason: str, seconds: float) -> None:
        """Counts a call.

        Args:
            method: Its full name; only methods that exist come here.
            code: Name of the gRPC status.
            reason: The stable reason of its error.
            seconds: How long it took.
        """
        self._calls.labels(method, code, reason).inc()
        self._seconds.labels(method).observe(seconds)

    def observe_run(self, graph: str, images: int) -> None:
        """Counts a run of a graph.

        Args:
            graph: The explainer, or `prediction`; only explainers that exist come here.
            images: How many images shared it.
        """
        self._run_images.labels(graph).observe(images)

    def count_units(self, model: str, explainer: str, units: int) -> None:
        """Counts units that were charged; repeats, which cost nothing, are not among them.

        Args:
            model: Its name; only models that are served come here.
            explainer: Its name.
            units: How many.
        """
        self._units.labels(model, explainer).inc(units)

    def count_guarded(self, outcome: str, images: int) -> None:
        """Counts images that the query guard looked at.

        Args:
            outcome: `near_copy`, `identical`, `other`, `refused` or `would_be_refused`.
            images: How many.
        """
        self._guarded.labels(outcome).inc(images)

    def serve(self, host: str, port: int) -> int:
        """Begins to answer scrapes.

        Args:
            host: Address to listen on.
            port: Port to listen on; 0 takes a free one.

        Returns:
            The port.

        Raises:
            ServiceError: If it cannot be listened on.
        """
        try:
            server, thread = start_http_server(port, addr=host, registry=self._registry)
        except OSError as error:
            raise ServiceError(f"cannot serve metrics on {host}:{port}: {error.strerror}") from None

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._stop = stop
        return int(server.server_port)

    def close(self) -> None:
        """Ends answering scrapes."""
        if self._stop is not None:
            self._stop()
            self._stop = None


class _Checks(Collector):
    """Whether each check of the server finds something wrong, asked when the metrics are."""

    def __init__(self, checks: Callable[[], Mapping[str, bool]]) -> None:
        self._checks = checks

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields one metric, with the names of the checks as labels."""
        family = GaugeMetricFamily(
            "keylock_failing_checks", "1 for checks that find something wrong.", labels=["check"]
        )
        for name, fails in self._checks().items():
            family.add_metric([name], float(fails))
        yield family
