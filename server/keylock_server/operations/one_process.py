"""One process that serves: from its start until it is told to stop, and the draining after that.

Who tells it are signals, or, where it is one of several workers, the process that watches over them. A worker takes no
signals, because those that are sent to a whole group of processes would reach it twice, and a second one cuts the
draining short.
"""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Callable
from typing import Any, Final

from keylock.signals import stopping_signals
from keylock_server.guard import Guard
from keylock_server.inference.shared_secrets import STOP, Shared
from keylock_server.operations.lifecycle import RunningServer
from keylock_server.operations.starting import start
from keylock_server.settings import ServerSettings
from keylock_server.transport.descriptors import raise_limit

__all__ = ["serve_alone", "serve_as_worker"]

_LOG: Final = logging.getLogger("keylock_server")


class _Told:
    """What the process was told so far."""

    def __init__(self) -> None:
        self.to_stop, self.to_hurry = asyncio.Event(), asyncio.Event()

    def once_more(self) -> None:
        """The first time means to stop, the second time to do so at once."""
        (self.to_hurry if self.to_stop.is_set() else self.to_stop).set()


def serve_alone(settings: ServerSettings, *, on_ready: Callable[[dict[str, Any]], None]) -> None:
    """Serves until SIGTERM, SIGINT or SIGHUP, drains, and returns. A second signal ends the draining.

    Args:
        settings: What the server does.
        on_ready: Called with what `RunningServer.describe` gives, once the server answers.

    Raises:
        KeylockError: As `start`.
    """

    def listen(told: _Told) -> None:
        loop = asyncio.get_running_loop()
        for number in stopping_signals():
            with contextlib.suppress(NotImplementedError):  # Windows has no signal handlers in event loops.
                loop.add_signal_handler(number, told.once_more)

    asyncio.run(_serve(settings, listen, lambda running: on_ready(running.describe()), None))


def serve_as_worker(settings: ServerSettings, channel: socket.socket, *, shared: Shared, guard: Guard | None) -> None:
    """Serves until the other end of the channel says so or is closed, drains, and returns.

    Args:
        settings: What the server does, on an address that other workers listen on as well.
        channel: Gets one line of JSON once the server answers, with what `RunningServer.describe` gives.
        shared: What all workers share.
        guard: The query guard, whose memory they share too; None where there is none.

    Raises:
        KeylockError: As `start`.
    """
    channel.setblocking(False)

    def listen(told: _Told) -> None:
        loop = asyncio.get_running_loop()

        def hear() -> None:
            try:
                heard = channel.recv(len(STOP))
            except OSError:  # The other end was closed before it had read everything.
                heard = b""
            if not heard:
                loop.remove_reader(channel)
            told.once_more()

        loop.add_reader(channel, hear)

    def report(running: RunningServer) -> None:
        channel.setblocking(True)
        channel.sendall(json.dumps(running.describe()).encode() + b"\n")
        channel.setblocking(False)

    asyncio.run(_serve(settings, listen, report, shared, guard))


async def _serve(
    settings: ServerSettings,
    listen: Callable[[_Told], None],
    on_ready: Callable[[RunningServer], None],
    shared: Shared | None,
    guard: Guard | None = None,
) -> None:
    raise_limit()
    told = _Told()
    listen(told)
    running = await start(settings, shared=shared, guard=guard)
    on_ready(running)
    waiting = [asyncio.create_task(told.to_stop.wait()), asyncio.create_task(running.wait_for_stop())]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    told.to_stop.set()
    if settings.notice_s:
        _LOG.info("leaving: new calls are taken for %g s, for load balancers to notice", settings.notice_s)
    _LOG.info("stopping: running calls have %g s to finish", settings.notice_s + settings.drain_s)
    draining = asyncio.create_task(running.stop())
    hurrying = asyncio.create_task(told.to_hurry.wait())
    await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    await running.stop(drain_s=0)
    await draining
    _LOG.info("stopped")
