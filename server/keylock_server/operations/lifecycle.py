"""A running server, and how it stops: it takes no new calls and lets the running ones finish."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import grpc

from keylock_server.inference.runtime import ServedModel
from keylock_server.operations.checks import Health
from keylock_server.services.admin import Served, open_admin
from keylock_server.services.parts import Parts
from keylock_server.transport.listening import forget_ready_file, join

if TYPE_CHECKING:
    from keylock_server.http.serving import HttpServer

__all__ = ["RunningServer"]

_FOREVER_S: Final = 1e6
_SETTLE_S: Final = 0.1
_LAST_S: Final = 1.0


class RunningServer:
    """A server that answers.

    Attributes:
        host: Where it listens.
        port: The port it really listens on.
        models: What it serves.
        parts: What its services work with.
        http_port: The port that speaks HTTP; None where none does.
        metrics_port: The port metrics are served on; None where they are not.
        admin_port: The port operators are served on; None where they are not.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        *,
        port: int,
        parts: Parts,
        health: Health,
        http: "HttpServer | None" = None,
    ) -> None:
        """Takes what `start` has made; call that instead."""
        self._server: grpc.aio.Server | None = server
        self._stopping: asyncio.Task[None] | None = None
        self._begun: asyncio.Task[None] | None = None
        self._told = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stopped = asyncio.Event()
        self.parts, self._settings, self._health = parts, parts.settings, health
        self._closing = AsyncExitStack()
        self._http, self.http_port = http, None if http is None else http.port
        self.metrics_port: int | None = None
        self.admin_port: int | None = None
        self._admin: grpc.aio.Server | None = None
        self.host, self.port, self.models = parts.settings.host, port, parts.models

    def closes_with(self, closing: AsyncExitStack) -> None:
        """Takes over what closes everything that the server works with, in the right order."""
        self._closing = closing

    @property
    def model(self) -> ServedModel:
        """The first model that is loaded."""
        return self.models.served[0]

    @property
    def target(self) -> str:
        """What clients connect to, `host:port`."""
        return join(self.host, self.port)

    @property
    def problems(self) -> Mapping[str, str]:
        """What is wrong with it, by the name of the check that found it."""
        return self._health.checks.problems

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
        ports = {"http_port": self.http_port, "admin_port": self.admin_port, "metrics_port": self.metrics_port}
        return {**where, **models[0], **ports, "models": models}

    def is_draining(self) -> bool:
        """Tells whether it takes no new calls any more."""
        return self._server is None

    async def serve_operators(self, served: Served, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> None:
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
        """Says that it leaves, takes no new calls, lets the running ones finish, stops. Called again, it stops sooner.

        Args:
            drain_s: How long all of that may take, in seconds; as set when None.
        """
        if self._server is not None:
            self._stopping = asyncio.create_task(self._drain(self._server))
            # A server of grpc.aio must go while its event loop runs, or it complains when it is collected.
            self._server = None
        if self._stopping is None:
            return
        most_s = self._settings.notice_s + self._settings.drain_s if drain_s is None else drain_s
        await asyncio.wait({self._stopping}, timeout=most_s)
        self._hurry.set()
        await self._stopping

    async def _drain(self, server: grpc.aio.Server) -> None:
        """Stops when no call of keylock's services runs any more, or when told to hurry.

        The server's own grace period would also wait for streams that never end, such as watchers of its health.
        """
        self._health.service.leave()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), self._settings.notice_s)
        self.parts.running.leaving.set()
        refusing = asyncio.create_task(server.stop(_FOREVER_S))
        if self._http is not None:
            self._http.refuse()
        await asyncio.sleep(_SETTLE_S)  # By now every accepted call is counted, and the watchers have been told.
        waiting = [asyncio.create_task(self.parts.running.idle()), asyncio.create_task(self._hurry.wait())]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in (refusing, *waiting):
            task.cancel()
        await asyncio.gather(refusing, *waiting, return_exceptions=True)
        # A call that came before all that and is not counted yet, as on a machine that is busy, is let finish as well.
        await server.stop(None if self._hurry.is_set() else _LAST_S)
        if self._http is not None:
            await self._http.close()
        # Not before: whoever restores the store asks which servers still use it, and they must notice that it was.
        await self._health.checks.close()
        await self.models.close()
        # Operators are served until here, so that they can watch the others finish.
        await self._closing.aclose()
        forget_ready_file(self._settings.ready_file)
        self._stopped.set()
