"""A server in a thread of its own, for programs without an event loop: notebooks, scripts, the quickstart."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

from keylock_server.operations.lifecycle import RunningServer
from keylock_server.operations.starting import start
from keylock_server.settings import ServerSettings

__all__ = ["serving"]

T = TypeVar("T")


@contextmanager
def serving(settings: ServerSettings, *, now: Callable[[], datetime] | None = None) -> Iterator[RunningServer]:
    """Serves while the block runs, in a thread with an event loop of its own.

    A process must not have two event loops with `grpc.aio`: use the synchronous client inside the block, and leave
    one block before entering another.

    Args:
        settings: What the server does.
        now: The clock that licenses are checked by; the system's when None.

    Yields:
        The server; its `target` is what clients connect to. Do not call its coroutines.

    Raises:
        KeylockError: As `start`.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="keylock-server", daemon=True)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    try:
        server = run(start(settings, now=now))
        try:
            yield server
        finally:
            run(server.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
