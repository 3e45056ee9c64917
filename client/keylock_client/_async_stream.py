"""Many images over one stream, for asyncio: what `_sync_stream` does with threads, with tasks."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any

import grpc

from keylock.v1 import explanation_pb2 as pb
from keylock_client._sources import ImageLike
from keylock_client._streams import MAX_WAITING_BYTES, Images, Unreadable, cost_of

__all__ = ["Feed", "Stream"]

_END = object()
# What grpc.aio says of a message that it could not send because the call had ended, in place of why.
_LOST = "Internal error from Core"


class Feed:
    """The images that are to be sent, and how many may be under way; it outlives a stream that is cut off."""

    def __init__(
        self, images: Images, given: Iterable[ImageLike] | AsyncIterable[ImageLike], *, in_flight: int
    ) -> None:
        """Takes the images, without looking at the first one."""
        self.images = images
        self._given: Any = aiter(given) if isinstance(given, AsyncIterable) else iter(given)
        self._places = asyncio.Semaphore(in_flight)
        self._reading: asyncio.Task[pb.ExplainStreamRequest | Unreadable | None] | None = None
        self._ended = False
        self._answered = asyncio.Event()
        self.owner: object = None

    @property
    def all_read(self) -> bool:
        """Whether the last image was read."""
        return self._ended

    def give_back(self) -> None:
        """Makes room for another image."""
        self._places.release()
        self._answered.set()

    def disown(self) -> None:
        """Stops giving images to the stream that has them now."""
        self.owner = None
        self._answered.set()

    async def settle(self) -> None:
        """Returns when no image is being read."""
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)

    async def next(self, owner: object) -> pb.ExplainStreamRequest | Unreadable | None:
        """Waits for room and reads the next image; returns None when there is none.

        A stream that is stopped meanwhile does not stop the reading: the image is then under way, and the next stream
        sends it.
        """
        await self._places.acquire()
        while self.owner is owner and self.images.has_room() is None:
            self._answered.clear()
            await self._answered.wait()
        if self.owner is not owner:
            # A stream that was closed and has not noticed yet would take an image that the next one does not know of.
            self._places.release()
            return None
        self._reading = asyncio.create_task(self._read())
        return await asyncio.shield(self._reading)

    async def _read(self) -> pb.ExplainStreamRequest | Unreadable | None:
        image: Any = _END
        try:
            if not self._ended:
                room = self.images.has_room()
                image = await self._take()
                if image is not _END and not room and self.images.budget is not None:
                    # There was another image, and it is left out.
                    self.images.budget.exhausted = True
                    image = _END
        finally:
            if image is _END:
                self._ended = True
                self._places.release()
        return None if image is _END else await asyncio.to_thread(self.images.prepare, image)

    async def _take(self) -> Any:  # noqa: ANN401 - an image, or the end
        if isinstance(self._given, AsyncIterator):
            return await anext(self._given, _END)
        return await asyncio.to_thread(next, self._given, _END)


class Stream:
    """One connection of a stream.

    Attributes:
        lost_status: Whether the server's reason for ending it was lost: gRPC forgets it where a message was about to
            be sent in that very moment.
    """

    def __init__(
        self,
        feed: Feed,
        open_call: Callable[[AsyncIterator[pb.ExplainStreamRequest]], Any],
        *,
        careful: bool = False,
    ) -> None:
        """Opens it; the first two arguments are those of the other stack.

        Args:
            feed: Of images.
            open_call: Begins the call.
            careful: Send no image before the last one was answered, so that nothing is being sent when the server ends
                the stream.
        """
        self._feed, self._careful = feed, careful
        feed.owner = self
        self.lost_status = False
        self._over, self._heard = False, asyncio.Event()
        self._arrived: asyncio.Queue[bytes | Unreadable | BaseException | None] = asyncio.Queue()
        self._waiting_bytes, self._room = 0, asyncio.Event()
        self._begun = feed.images.begin()
        self._call = open_call(self._messages())
        self._reader = asyncio.create_task(self._read())

    async def next(self, limit_s: float) -> bytes | Unreadable | None:
        """Waits for the next answer; as on the other stack."""
        while True:
            images = self._feed.images
            waiting = images.any_under_way
            # Also where more has come: a server that sends on and on and never an answer is as good as silent.
            if waiting and not images.left_s(limit_s):
                raise images.too_slow(limit_s)
            try:
                arrived = await asyncio.wait_for(self._arrived.get(), images.left_s(limit_s) if waiting else limit_s)
            except TimeoutError:
                if not (waiting and images.any_under_way) or images.left_s(limit_s):
                    continue
                raise images.too_slow(limit_s) from None
            if isinstance(arrived, bytes):
                self._waiting_bytes -= cost_of(arrived)
                self._room.set()
            if isinstance(arrived, BaseException):
                raise arrived
            return arrived

    async def close(self) -> None:
        """Ends the stream, and what runs for it."""
        self._feed.disown()
        self._call.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._feed.settle()

    async def _messages(self) -> AsyncIterator[pb.ExplainStreamRequest]:
        for number, message in enumerate(self._begun):
            yield message
            # The first message is what all images have in common, and has no answer.
            if number and await self._ended():
                return
        while True:
            try:
                prepared = await self._feed.next(self)
            except Exception as error:  # Of the caller's own images: it belongs into the caller's task.
                self._arrived.put_nowait(error)
                return
            if prepared is None:
                return
            if isinstance(prepared, Unreadable):
                self._arrived.put_nowait(prepared)
            else:
                yield prepared
                if await self._ended():
                    return

    async def _ended(self) -> bool:
        """Waits for an answer, where that is wanted, and tells whether the stream is over instead."""
        if self._careful:
            await self._heard.wait()
            self._heard.clear()
        return self._over

    async def _read(self) -> None:
        try:
            async for data in self._call:
                self._arrived.put_nowait(data)
                self._waiting_bytes += cost_of(data)
                self._heard.set()
                # As long as this does not read on, the connection holds up the server.
                while self._waiting_bytes > MAX_WAITING_BYTES:
                    self._room.clear()
                    await self._room.wait()
        except (grpc.RpcError, grpc.aio.UsageError, ValueError) as error:
            self.lost_status = isinstance(error, grpc.aio.AioRpcError) and error.details() == _LOST
            self._arrived.put_nowait(error)
        except asyncio.CancelledError:
            # By `close`, when nobody listens any more, or because the channel was closed under the call.
            self._arrived.put_nowait(grpc.aio.UsageError("the channel was closed"))
            raise
        else:
            self._arrived.put_nowait(None)
        finally:
            self._over = True
            self._heard.set()
