"""The client for asyncio, on the asynchronous stack of gRPC. What it does is documented in `_sync.py`."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

import grpc
import grpc.aio
from google.protobuf.message import Message

from keylock_client import _exchanges as exchanges
from keylock_client._async_stream import Feed, Stream
from keylock_client._base import BaseClient
from keylock_client._budget import check_max_units
from keylock_client._calls import Call, Exchange
from keylock_client._requests import ExplainOptions
from keylock_client._sources import ImageLike
from keylock_client._streams import Unreadable, check_in_flight, pause_s, worth_another_try
from keylock_client.charges import Estimate, LicenseInfo, Proof, Quota, Receipt
from keylock_client.errors import ClientError, LicenseRefusedError
from keylock_client.explanations import Explained, Explanation, Progress
from keylock_client.results import ModelInfo, Prediction

__all__ = ["AsyncClient"]

T = TypeVar("T")
# What is asked when the time is all but up has this long, in seconds.
_LEAST_S = 0.05
# How often a stream is opened again because it ended for a reason that gRPC has lost.
_MOST_LOST = 3


class AsyncClient(BaseClient):
    """`Client` for asyncio. Use it in one event loop.

    async with AsyncClient("localhost:8470", license="acme.license") as client:
        explanation = await client.explain("cat.jpg")
    """

    # Made by the first call, because a channel belongs to the event loop that runs when it is made.
    _channel: grpc.aio.Channel | None = None

    # A text is one image, although it is a sequence too: the first signature that fits holds.
    @overload
    async def predict(  # type: ignore[overload-overlap]
        self, image: ImageLike, *, bits: int | None = ..., timeout_s: float | None = ...
    ) -> Prediction: ...
    @overload
    async def predict(
        self, image: Sequence[ImageLike], *, bits: int | None = ..., timeout_s: float | None = ...
    ) -> list[Prediction]: ...
    async def predict(
        self, image: ImageLike | Sequence[ImageLike], *, bits: int | None = None, timeout_s: float | None = None
    ) -> Prediction | list[Prediction]:
        """Classify images, as `Client.predict` does."""
        return await self._run(exchanges.predict(self._memory, image, bits=bits), timeout_s)

    @overload
    async def label(  # type: ignore[overload-overlap]
        self, image: ImageLike, *, bits: int | None = ..., timeout_s: float | None = ...
    ) -> str: ...
    @overload
    async def label(
        self, image: Sequence[ImageLike], *, bits: int | None = ..., timeout_s: float | None = ...
    ) -> list[str]: ...
    async def label(
        self, image: ImageLike | Sequence[ImageLike], *, bits: int | None = None, timeout_s: float | None = None
    ) -> str | list[str]:
        """Name the most probable class of images and nothing else, as `Client.label` does."""
        return await self._run(exchanges.label(self._memory, image, bits=bits), timeout_s)

    @overload
    async def explain(  # type: ignore[overload-overlap]
        self, image: ImageLike, **options: Unpack[ExplainOptions]
    ) -> Explanation: ...
    @overload
    async def explain(self, image: Sequence[ImageLike], **options: Unpack[ExplainOptions]) -> list[Explanation]: ...
    async def explain(
        self,
        image: ImageLike | Sequence[ImageLike],
        *,
        explainer: str | None = None,
        target: int | str | None = None,
        parameters: Mapping[str, Any] | None = None,
        map_dtype: str | None = None,
        prediction: str = "public",
        explain_if: str | None = None,
        bits: int | None = None,
        request_id: str | None = None,
        max_units: int | None = None,
        timeout_s: float | None = None,
    ) -> Explanation | list[Explanation]:
        """Explain what the model sees in images, as `Client.explain` does."""
        exchange = exchanges.explain(
            self._memory,
            image,
            explainer=explainer,
            target=target,
            parameters=parameters,
            map_dtype=map_dtype,
            prediction=prediction,
            explain_if=explain_if,
            request_id=request_id,
            max_units=max_units,
            bits=bits,
        )
        return await self._run(exchange, timeout_s)

    async def disclose(
        self,
        image: ImageLike,
        *,
        reason: str,
        subject: str,
        explainer: str | None = None,
        target: int | str | None = None,
        bits: int | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Explanation:
        """Explain an image to somebody who has a right to it, as `Client.disclose` does."""
        exchange = exchanges.disclose(
            self._memory,
            image,
            reason=reason,
            subject=subject,
            explainer=explainer,
            target=target,
            bits=bits,
            request_id=request_id,
        )
        return await self._run(exchange, timeout_s)

    def explain_many(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        explainer: str | None = None,
        target: int | str | None = None,
        parameters: Mapping[str, Any] | None = None,
        map_dtype: str | None = None,
        prediction: str = "public",
        explain_if: str | None = None,
        bits: int | None = None,
        request_id: str | None = None,
        max_units: int | None = None,
        in_flight: int = 16,
        progress: Callable[[Progress], object] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Explained]:
        """Explain many images over one stream, as `Client.explain_many` does; they may come asynchronously too.

        To end the stream early, close the iterator (`contextlib.aclosing`): leaving the loop alone does that later.
        """
        several = self._images(
            images,
            request_id=request_id,
            bits=bits,
            explainer=explainer,
            target=target,
            parameters=parameters,
            map_dtype=map_dtype,
            prediction=prediction,
            explain_if=explain_if,
        )
        feed = Feed(several, images, in_flight=check_in_flight(in_flight))
        return self._give_out(feed, self._limit(timeout_s), progress, check_max_units(max_units))

    async def model(self, *, timeout_s: float | None = None) -> ModelInfo:
        """Ask what the served model is, as `Client.model` does."""
        return await self._run(exchanges.describe(self._memory, refresh=True), timeout_s)

    async def license(self, *, timeout_s: float | None = None) -> LicenseInfo:
        """Ask what this client's license grants, as `Client.license` does."""
        return await self._run(exchanges.license_info(self._memory), timeout_s)

    async def usage(self, *, timeout_s: float | None = None) -> tuple[Quota, ...]:
        """Ask what this client's license has used, as `Client.usage` does."""
        return await self._run(exchanges.usage(self._memory), timeout_s)

    async def estimate(self, images: int, *, explainer: str | None = None, timeout_s: float | None = None) -> Estimate:
        """Ask what a call would cost, as `Client.estimate` does."""
        return await self._run(exchanges.estimate(self._memory, images, explainer=explainer), timeout_s)

    async def prove(self, receipt: Receipt | str, *, since: str | None = None, timeout_s: float | None = None) -> Proof:
        """Ask for the proof that a receipt is in the vendor's log, as `Client.prove` does."""
        return await self._run(exchanges.prove(self._memory, receipt, since=since), timeout_s)

    async def close(self) -> None:
        """Close the connection. Calls under way fail with `ClosedError`; closing twice is fine."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _give_out(
        self, feed: Feed, limit: float, progress: Callable[[Progress], object] | None, max_units: int | None
    ) -> AsyncIterator[Explained]:
        info = await self._run(exchanges.describe(self._memory), limit)
        feed.images.limits = info.limits
        if max_units is not None:
            budget = await self._run(exchanges.budget(self._memory, max_units, explainer=feed.images.explainer), limit)
            feed.images.budget = budget
        attempts, renewed, careful, lost = 0, False, False, 0
        while True:
            access = await self._run(exchanges.access(self._memory), limit) if self._memory.exchanges else None
            call = self._stream_call(feed.images, access)
            channel = self._channel = self._channel or self._open()
            stream = Stream(feed, self._opener(channel, call), careful=careful)
            try:
                while True:
                    message, failure = await self._next(stream, call, limit)
                    if failure is not None:
                        break
                    if isinstance(message, Unreadable):
                        explained = feed.images.finish(message.number, message.name, error=message.error)
                    elif message is None:
                        self._end(feed.images, all_read=feed.all_read)
                        feed.images.check_budget()
                        return
                    else:
                        left = max(feed.images.left_s(limit), _LEAST_S)
                        info = await self._run(exchanges.catch_up(self._memory, message, info), left)
                        taken = self._take(message, feed.images, info, call)
                        if taken is None:
                            continue
                        explained = taken
                    attempts, renewed, lost = 0, False, 0
                    if progress is not None:
                        progress(explained.progress)
                    yield explained
                    # The time that the caller takes is not the server's.
                    feed.images.wait_anew()
                    feed.give_back()
            finally:
                await stream.close()
            attempts += 1
            if stream.lost_status:
                # Asked again in a way that brings the reason to light; what was charged is not charged again.
                careful, lost = True, lost + 1
                if lost <= _MOST_LOST:
                    continue
                self._end(feed.images, all_read=feed.all_read)
            if isinstance(failure, LicenseRefusedError) and self._memory.exchanges and not renewed:
                self._memory.access, renewed, careful = None, True, False
                continue
            if not worth_another_try(failure, attempts=attempts, waiting=feed.images.any_under_way):
                raise failure from None
            await asyncio.sleep(pause_s(failure, attempts=attempts))

    async def _next(
        self, stream: Stream, call: Call, limit: float
    ) -> tuple[Message | Unreadable | None, ClientError | None]:
        try:
            arrived = await stream.next(limit)
        except (grpc.RpcError, grpc.aio.UsageError, ValueError) as error:
            return None, self._failure(error, call, limit)
        return self._read_stream(call, arrived), None

    async def _run(self, exchange: Exchange[T], timeout_s: float | None) -> T:
        limit = self._limit(timeout_s)
        ends = time.monotonic() + limit
        try:
            call = next(exchange)
            while True:
                if call.begins_anew:
                    ends = time.monotonic() + limit
                answer, failure = await self._make(call, limit, left=max(ends - time.monotonic(), _LEAST_S))
                # Thrown outside of the handler, so that gRPC's own exception is not even its context.
                call = exchange.send(answer) if failure is None else exchange.throw(failure)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _make(self, call: Call, limit: float, *, left: float) -> tuple[Message | None, ClientError | None]:
        metadata = self._metadata(call)
        channel = self._channel = self._channel or self._open()
        try:
            data = await self._method(channel, call.method)(call.request, timeout=left, metadata=metadata)
        except (grpc.RpcError, grpc.aio.UsageError, ValueError) as error:
            return None, self._failure(error, call, limit)
        return self._read(call, data)

    def _open(self) -> grpc.aio.Channel:
        options = self._settings.channel_options
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._settings.target, options=options)
        return grpc.aio.secure_channel(self._settings.target, self._credentials, options=options)
