"""The client for asyncio, on the asynchronous stack of gRPC. What it does is documented in `_sync.py`."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import grpc
import grpc.aio
from google.protobuf.message import Message

from keylock_client import _exchanges as exchanges
from keylock_client._base import BaseClient
from keylock_client._exchanges import Call, Exchange
from keylock_client._sources import ImageLike
from keylock_client.errors import ClientError
from keylock_client.results import Estimate, Explanation, LicenseInfo, ModelInfo, Prediction, Proof, Quota, Receipt

__all__ = ["AsyncClient"]

T = TypeVar("T")


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
        self, image: ImageLike, *, timeout_s: float | None = ...
    ) -> Prediction: ...
    @overload
    async def predict(self, image: Sequence[ImageLike], *, timeout_s: float | None = ...) -> list[Prediction]: ...
    async def predict(
        self, image: ImageLike | Sequence[ImageLike], *, timeout_s: float | None = None
    ) -> Prediction | list[Prediction]:
        """Classify images, as `Client.predict` does."""
        return await self._run(exchanges.predict(self._memory, image), timeout_s)

    @overload
    async def explain(  # type: ignore[overload-overlap]
        self,
        image: ImageLike,
        *,
        explainer: str | None = ...,
        target: int | str | None = ...,
        parameters: Mapping[str, Any] | None = ...,
        request_id: str | None = ...,
        timeout_s: float | None = ...,
    ) -> Explanation: ...
    @overload
    async def explain(
        self,
        image: Sequence[ImageLike],
        *,
        explainer: str | None = ...,
        target: int | str | None = ...,
        parameters: Mapping[str, Any] | None = ...,
        request_id: str | None = ...,
        timeout_s: float | None = ...,
    ) -> list[Explanation]: ...
    async def explain(
        self,
        image: ImageLike | Sequence[ImageLike],
        *,
        explainer: str | None = None,
        target: int | str | None = None,
        parameters: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Explanation | list[Explanation]:
        """Explain what the model sees in images, as `Client.explain` does."""
        exchange = exchanges.explain(
            self._memory, image, explainer=explainer, target=target, parameters=parameters, request_id=request_id
        )
        return await self._run(exchange, timeout_s)

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

    async def _run(self, exchange: Exchange[T], timeout_s: float | None) -> T:
        limit = self._limit(timeout_s)
        try:
            call = next(exchange)
            while True:
                answer, failure = await self._make(call, limit)
                # Thrown outside of the handler, so that gRPC's own exception is not even its context.
                call = exchange.send(answer) if failure is None else exchange.throw(failure)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _make(self, call: Call, limit: float) -> tuple[Message | None, ClientError | None]:
        metadata = self._metadata(call)
        channel = self._channel = self._channel or self._open()
        try:
            data = await self._method(channel, call.method)(call.request, timeout=limit, metadata=metadata)
        except (grpc.RpcError, grpc.aio.UsageError, ValueError) as error:
            return None, self._failure(error, call, limit)
        return self._read(call, data)

    def _open(self) -> grpc.aio.Channel:
        options = self._settings.channel_options
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._settings.target, options=options)
        return grpc.aio.secure_channel(self._settings.target, self._credentials, options=options)
