"""Decoding the images of requests in threads: large ones in turns, within a number of bytes that all of them share.

An image that does not fit yet waits in the event loop and holds no thread, so that small images go on beside it. Its
request goes on from that image when there is room.
"""

import asyncio
import ctypes
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keylock.errors import ImageError
from keylock_server.scheduling.decoder_pool import DecoderPool
from keylock_server.transport.calls import current_call
from keylock_server.transport.cancellation import stop_if

__all__ = ["Claim", "Decoder", "DecodingMemory", "Grant", "Step", "decode_small", "join"]

Claim = Callable[[int], None]
"""Told how many bytes an image takes, before it takes them."""

Step = Callable[[Claim], NDArray[np.float32]]
"""Returns preprocessed images, float32 `(batch, channels, height, width)`; called again where it has to wait."""

_MIB: Final = 2**20
_SMALL_BYTES: Final = 32 * _MIB
# Decoding takes some milliseconds at most.
_QUICK_BYTES: Final = 4 * _MIB


class _WaitError(Exception):
    """An image is large and has nothing granted yet."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


class Grant:
    """Bytes that one image may take. They are given back once, by whoever uses them last."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        """Takes what gives them back."""
        self._give_back = give_back
        self._lock = threading.Lock()
        self._begun = self._over = False

    def begin(self) -> None:
        """Begins to use them, in a thread, which then ends it.

        Raises:
            CancelledError: If they were given back already, because nobody waits for the image any more.
        """
        with self._lock:
            if self._over:
                raise CancelledError
            self._begun = True

    def end(self) -> None:
        """Gives them back after use."""
        self._over = True
        self._give_back()

    def drop(self) -> None:
        """Gives them back where they were never used."""
        with self._lock:
            if self._begun or self._over:
                return
            self._over = True
        self._give_back()


class DecodingMemory:
    """A number of bytes for large images, handed out to tenants in turns. Made and used in one event loop.

    Attributes:
        total_bytes: How many there are.
    """

    def __init__(self, total_bytes: int, *, at_once: int) -> None:
        """Sets the number.

        Args:
            total_bytes: At least 1.
            at_once: How many images share it at most; at least 1.
        """
        self._loop = asyncio.get_running_loop()
        self.total_bytes, self._at_once = total_bytes, at_once
        self._taken, self._held = 0, 0
        self._line: OrderedDict[str, deque[tuple[int, asyncio.Future[Grant]]]] = OrderedDict()

    @property
    def taken_bytes(self) -> int:
        """How much is taken now."""
        return self._taken

    @property
    def waiting(self) -> int:
        """How many images wait."""
        return sum(not future.done() for waiting in self._line.values() for _, future in waiting)

    async def take(self, count: int) -> Grant:
        """Waits for bytes, in the turn of the tenant of the current call.

        Args:
            count: How many; at most as many as there are.
        """
        call = current_call()
        tenant = "" if call is None else call.tenant
        future: asyncio.Future[Grant] = self._loop.create_future()
        entry = (count, future)
        self._line.setdefault(tenant, deque()).append(entry)
        self._hand_out()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                future.result().drop()
            self._hand_out()
            raise

    def _hand_out(self) -> None:
        """Gives to whoever is next, as long as there is room: nobody overtakes, or large images would wait for ever."""
        while self._line and self._held < self._at_once:
            tenant, waiting = next(iter(self._line.items()))
            while waiting and waiting[0][1].done():
                waiting.popleft()
            if waiting:
                count, future = waiting[0]
                if self._taken + count > self.total_bytes:
                    return
                waiting.popleft()
                self._taken += count
                self._held += 1
                future.set_result(Grant(lambda count=count: self._take_back(count)))  # type: ignore[misc]
                self._line.move_to_end(tenant)
            if not waiting:
                del self._line[tenant]

    def _take_back(self, count: int) -> None:
        """Takes bytes back, in any thread."""
        _trim()
        with suppress(RuntimeError):  # The event loop has ended, and with it the server.
            self._loop.call_soon_threadsafe(self._note_back, count)

    def _note_back(self, count: int) -> None:
        self._taken -= count
        self._held -= 1
        self._hand_out()


class Decoder:
    """Decodes images of requests. Made and used in one event loop."""

    def __init__(self, workers: DecoderPool, memory: DecodingMemory) -> None:
        """Makes the decoder.

        Args:
            workers: Threads.
            memory: What large images share.
        """
        self._workers, self._memory = workers, memory

    async def run(
        self, plan: Callable[[], Sequence[Step]], *, done: Sequence[NDArray[np.float32]] = ()
    ) -> NDArray[np.float32]:
        """Decodes the images of a request, one after another.

        Args:
            plan: Returns what is to be done, at least one step, each with one large image at most. Called in a thread.
            done: What `decode_small` returned for the first of the steps; not for all of them.

        Returns:
            What the steps return, in their order, in one array.

        Raises:
            ExpiredError: If the deadline of the call came first.
            KeylockError: Whatever plan and steps raise.
        """
        steps: list[Step] = []
        done = list(done)

        def go_on(abandoned: threading.Event, grant: Grant | None, room: int) -> int:
            """Decodes until an image has to wait; returns how much that takes, or 0 at the end."""

            def claim(count: int) -> None:
                if count < _SMALL_BYTES or count <= room:
                    return
                if count > self._memory.total_bytes:
                    raise ImageError(
                        f"decoding the image takes about {count // _MIB} MiB and this server has "
                        f"{self._memory.total_bytes // _MIB} MiB for that: scale it down, or send a PNG file of 8 bits"
                    )
                raise _WaitError(count)

            if grant is not None:
                grant.begin()
            try:
                steps.extend([] if steps else plan())
                while len(done) < len(steps):
                    stop_if(abandoned)
                    done.append(steps[len(done)](claim))
                    if grant is not None:
                        # Granted for one image; those after it wait behind other callers.
                        break
            except _WaitError as wait:
                return wait.count
            finally:
                if grant is not None:
                    grant.end()
            return 0

        wanted = 0
        while not steps or len(done) < len(steps):
            grant = await self._memory.take(wanted) if wanted else None
            try:
                wanted = await self._workers.run(
                    lambda abandoned, grant=grant, room=wanted: go_on(abandoned, grant, room)  # type: ignore[misc]
                )
            finally:
                if grant is not None:
                    grant.drop()
        return join(done)


def decode_small(steps: Sequence[Step]) -> list[NDArray[np.float32]]:
    """Decodes the first images of a request, up to one that takes more than some milliseconds, wherever it is called.

    Args:
        steps: What is to be done.

    Returns:
        What the steps return up to there.

    Raises:
        KeylockError: Whatever the steps raise.
    """

    def claim(count: int) -> None:
        if count > _QUICK_BYTES:
            raise _WaitError(count)

    done: list[NDArray[np.float32]] = []
    for step in steps:
        try:
            done.append(step(claim))
        except _WaitError:
            break
    return done


def join(arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Returns the rows of several arrays in one; a single one as it is."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _trim() -> None:
    """Returns freed memory to the system, where the C library keeps it and can be told."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
