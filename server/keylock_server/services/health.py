"""Whether the server is well: it looks at its store and at its own answers, and its health says what it found.

The canary is a few images of the bundle with the maps that were proved at export. Served again, with and without the
key, they must come out the same; a wrong key, a key that is always on and a runtime that computes something else all
show. The health service tells each service apart: without its store a server predicts still and explains nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from keylock.bundle import Canary
from keylock.errors import KeylockError
from keylock_server.inference.runtime import ServedModel, check_finite

__all__ = ["Check", "HealthChecks", "HealthService", "check_canaries", "check_canary", "first_look"]

_LOG: Final = logging.getLogger("keylock_server")
_SOON_S: Final = 5.0


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """`grpc.health.v1.Health`, with watchers that do not depend on each other.

    That of grpcio-health-checking forgets every watcher of a service when one of them goes away, and changes nothing
    while one of them does not read.
    """

    def __init__(self) -> None:
        """Begins without any service."""
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._leaving = False

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: ANN401, N802
        """Says how a service is."""
        if request.service not in self._statuses:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return health_pb2.HealthCheckResponse(status=self._statuses[request.service])

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:  # noqa: ANN401, N802
        """Says how a service is, and again whenever that has changed, until the caller goes away."""
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            await changed.wait()

    def is_well(self, service: str) -> bool:
        """Tells whether a service is well; the empty name stands for the whole server."""
        serving: int = health_pb2.HealthCheckResponse.SERVING
        return self._statuses.get(service) == serving

    def set(self, service: str, *, well: bool) -> None:
        """Sets how a service is; nothing is well any more once the server leaves."""
        status = health_pb2.HealthCheckResponse
        self._statuses[service] = status.SERVING if well and not self._leaving else status.NOT_SERVING
        self._changed.set()
        self._changed = asyncio.Event()

    def leave(self) -> None:
        """Lets nothing be well any more."""
        self._leaving = True
        for service in self._statuses:
            self.set(service, well=False)


@dataclass(frozen=True)
class Check:
    """Something the server looks at.

    Attributes:
        find: Returns what is wrong, in words for the operator, or None; it may block, and raise a `KeylockError`.
        every_s: How often, in seconds.
        services: Names of the services that are not well while something is wrong.
        first: What is looked at instead at the start, where `find` takes long; it follows within seconds.
        end: Called once when nobody looks any more; it may block.
    """

    find: Callable[[], str | None]
    every_s: float
    services: frozenset[str]
    first: Callable[[], str | None] | None = None
    end: Callable[[], None] | None = None


class HealthChecks:
    """Runs checks while the server runs, and sets its health.

    Attributes:
        names: Those of the checks.
        problems: What is wrong, by the name of the check.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        *,
        service: HealthService,
        services: Collection[str],
    ) -> None:
        """Takes the checks.

        Args:
            checks: By name.
            service: Is told of each service whether it is well.
            services: Every service there is.
        """
        self._checks, self._service, self._services = dict(checks), service, tuple(services)
        self._tasks: list[asyncio.Task[None]] = []
        self._looking: set[asyncio.Task[str | None]] = set()
        self.names = tuple(self._checks)
        self.problems: dict[str, str] = {}

    async def start(self) -> None:
        """Runs every check once, sets the health, and goes on looking."""
        for name, check in self._checks.items():
            await self._look(name, check.first or check.find)
        self._tell()
        self._tasks = [asyncio.create_task(self._run(name, check)) for name, check in self._checks.items()]

    async def close(self) -> None:
        """Stops looking; does nothing when called again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # A thread cannot be cancelled, and what a check ends must not be gone while it looks.
        await asyncio.gather(*self._looking, return_exceptions=True)
        checks, self._checks = self._checks, {}
        for check in checks.values():
            if check.end is not None:
                await asyncio.to_thread(check.end)

    async def _run(self, name: str, check: Check) -> None:
        pause_s = check.every_s if check.first is None else min(check.every_s, _SOON_S)
        while True:
            await asyncio.sleep(pause_s)
            pause_s = check.every_s
            if await self._look(name, check.find):
                self._tell()

    async def _look(self, name: str, find: Callable[[], str | None]) -> bool:
        """Runs a check; returns whether what it finds has changed."""
        looking = asyncio.create_task(asyncio.to_thread(find))
        self._looking.add(looking)
        looking.add_done_callback(self._looking.discard)
        try:
            problem = await asyncio.shield(looking)
        except KeylockError as error:
            problem = error.message
        except Exception as error:  # Whatever goes wrong while looking is what was looked for.
            problem = f"the check failed ({type(error).__name__})"
        before = self.problems.pop(name, None)
        if problem is not None:
            self.problems[name] = problem
        if problem is not None and before is None:
            _LOG.error("health check failed: %s: %s", name, problem)
        elif problem is None and before is not None:
            _LOG.info("health check passed again: %s", name)
        return (problem is None) != (before is None)

    def _tell(self) -> None:
        unwell = frozenset[str]().union(*(self._checks[name].services for name in self.problems))
        for service in self._services:
            self._service.set(service, well=service not in unwell)


def first_look(models: Iterable[ServedModel]) -> str | None:
    """Returns what the trial of each model has shown when it was loaded, as `check_canaries` does."""
    for model in models:
        if model.trial_problem is not None:
            return f"{model.manifest.name}: {model.trial_problem}: check runtime, device and bundle"
    return None


def check_canaries(models: Iterable[ServedModel]) -> str | None:
    """Does what `check_canary` does for every model that has a canary.

    Args:
        models: What is served.

    Returns:
        The first difference, in words, or None.
    """
    for model in models:
        problem = None if model.canary is None else check_canary(model, model.canary)
        if problem is not None:
            return f"{model.manifest.name}: {problem}"
    return None


def check_canary(model: ServedModel, canary: Canary) -> str | None:
    """Explains the canary's images again, with and without the key, and compares.

    Args:
        model: What is served.
        canary: Of its bundle.

    Returns:
        The first difference, in words, or None.
    """
    count = len(canary.images)
    images = np.concatenate([canary.images, canary.images])
    keyed = np.arange(2 * count) < count
    for name in model.explainers:
        if name not in canary.keyed or name not in canary.keyless:
            continue
        targets = np.full(2 * count, -1, np.int64)
        maps = model.explain(images, explainer=name, targets=targets, keyed=keyed).maps
        check_finite(maps)
        problem = canary.difference(name, keyed=maps[:count], keyless=maps[count:])
        if problem is not None:
            return f"{problem}: check runtime, device and bundle"
    return None
