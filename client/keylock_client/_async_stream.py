"""Many images over one stream, for asyncio: what `_sync_stream` does with threads, with tasks."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any

import grpc

from keylock.v1 import explanation_pb2 as pb
from keylock_client._sources import ImageLike
from keylock_client._streams import Images, Unreadable

__all__ = ["Feed", "Stream"]

_END = object()


class Feed:
    """The images that are to be sent, and how many may be under way; it outlives a stream that is cut off."""

    def __init__(
        self, images: Images, given: Iterable[ImageLike] | AsyncIterable[ImageLike], *, in_flight: int
    ) -> None:
        """Takes the images, without looking at the first one."""
        self.images = images
        self._given: Any = aiter(given) if isinstance(given, AsyncIterable) else iter(given)
        self._places = asyncio.Semaphore(in_flight)
        self._reading = asyncio.Lock()
        self._ended = False

    def give_back(self) -> None:
        """Makes room for another image."""
        self._places.release()

    async def settle(self) -> None:
        """Returns when no image is being read."""
        async with self._reading:
            pass

    async def next(self) -> pb.ExplainStreamRequest | Unreadable | None:
        """Waits for room and reads the next image; returns None when there is none.

        A stream that is stopped meanwhile does not stop the reading: the image is then under way, and the next stream
        sends it.
        """
        await self._places.acquire()
        return await asyncio.shield(asyncio.ensure_future(self._read()))

    async def _read(self) -> pb.ExplainStreamRequest | Unreadable | None:
        async with self._reading:
            image: Any = _END
            try:
                if not self._ended:
                    image = await self._take()
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
    """One connection of a stream."""

    def __init__(self, feed: Feed, open_call: Callable[[AsyncIterator[pb.ExplainStreamRequest]], Any]) -> None:
        """Opens it; the arguments are those of the other stack."""
        self._feed = feed
        self._arrived: asyncio.Queue[bytes | Unreadable | BaseException | None] = asyncio.Queue()
        self._begun = feed.images.begin()
        self._call = open_call(self._messages())
        self._reader = asyncio.create_task(self._read())

    async def next(self, limit_s: float) -> bytes | Unreadable | None:
        """Waits for the next answer; as on the other stack."""
        while True:
            try:
                arrived = await asyncio.wait_for(self._arrived.get(), limit_s)
            except TimeoutError:
                if not self._feed.images.any_under_way:
                    continue
                raise self._feed.images.too_slow(limit_s) from None
            if isinstance(arrived, BaseException):
                raise arrived
            return arrived

    async def close(self) -> None:
        """Ends the stream, and what runs for it."""
        self._call.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._feed.settle()

    async def _messages(self) -> AsyncIterator[pb.ExplainStreamRequest]:
        for message in self._begun:
            yield message
        while True:
            try:
                prepared = await self._feed.next()
            except Exception as error:  # Of the caller's own images: it belongs into the caller's task.
                self._arrived.put_nowait(error)
                return
            if prepared is None:
                return
            if isinstance(prepared, Unreadable):
                self._arrived.put_nowait(prepared)
            else:
                yield prepared

    async def _read(self) -> None:
        try:
            async for data in self._call:
                self._arrived.put_nowait(data)
        except (grpc.RpcError, grpc.aio.UsageError, ValueError) as error:
            self._arrived.put_nowait(error)
        except asyncio.CancelledError:
            # By `close`, when nobody listens any more, or because the channel was closed under the call.
            self._arrived.put_nowait(grpc.aio.UsageError("the channel was closed"))
            raise
        else:
            self._arrived.put_nowait(None)
