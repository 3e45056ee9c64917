"""The client for ordinary code and threads, on the synchronous stack of gRPC."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import grpc
from google.protobuf.message import Message

from keylock_client import _exchanges as exchanges
from keylock_client._base import BaseClient
from keylock_client._exchanges import Call, Exchange
from keylock_client._sources import ImageLike
from keylock_client.errors import ClientError
from keylock_client.results import Estimate, Explanation, LicenseInfo, ModelInfo, Prediction, Proof, Quota, Receipt

__all__ = ["Client"]

T = TypeVar("T")


class Client(BaseClient):
    """Asks a keylock server for predictions and explanations. Threads may share one client.

        with Client("localhost:8470", license="acme.license") as client:
            explanation = client.explain("cat.jpg")
        explanation.save("why.png")

    A request that finds the server away is repeated a few times within its timeout, under the same request id. The
    errors of all calls are in `keylock_client.errors`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - those of BaseClient
        super().__init__(*args, **kwargs)
        options = self._settings.channel_options
        if self._credentials is None:
            self._channel = grpc.insecure_channel(self._settings.target, options=options)
        else:
            self._channel = grpc.secure_channel(self._settings.target, self._credentials, options=options)

    # A text is one image, although it is a sequence too: the first signature that fits holds.
    @overload
    def predict(  # type: ignore[overload-overlap]
        self, image: ImageLike, *, timeout_s: float | None = ...
    ) -> Prediction: ...
    @overload
    def predict(self, image: Sequence[ImageLike], *, timeout_s: float | None = ...) -> list[Prediction]: ...
    def predict(
        self, image: ImageLike | Sequence[ImageLike], *, timeout_s: float | None = None
    ) -> Prediction | list[Prediction]:
        """Classify images. This needs no license, and none is sent.

        A long list is sent in several requests, one after the other, so that none is too large for the server.

        Args:
            image: One image or a list of them: paths, bytes of image files, Pillow images, uint8 pixels
                `(height, width, 3)`, or preprocessed float arrays `(channels, height, width)`. An array with a batch
                dimension counts as a list.
            timeout_s: Seconds each request may take, in place of the client's.

        Returns:
            A prediction, or a list of them for a list of images.

        Raises:
            InputError: An image cannot be used; the message names it.
            ClientError: A call failed.
        """
        return self._run(exchanges.predict(self._memory, image), timeout_s)

    @overload
    def explain(  # type: ignore[overload-overlap]
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
    def explain(
        self,
        image: Sequence[ImageLike],
        *,
        explainer: str | None = ...,
        target: int | str | None = ...,
        parameters: Mapping[str, Any] | None = ...,
        request_id: str | None = ...,
        timeout_s: float | None = ...,
    ) -> list[Explanation]: ...
    def explain(
        self,
        image: ImageLike | Sequence[ImageLike],
        *,
        explainer: str | None = None,
        target: int | str | None = None,
        parameters: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Explanation | list[Explanation]:
        """Explain what the model sees in images. Without a license the maps are decoys, marked `keyed=False`.

        A long list is sent in several requests, one after the other, so that none is too large for the server.

        Args:
            image: One image or a list of them, as in `predict`.
            explainer: Name of the saliency method; the server's first if left out.
            target: Label or index of the class to explain, for all images; the predicted class of each if left out.
            parameters: Parameters of the explainer to insist on. They are fixed by the vendor: others than those in
                use are refused.
            request_id: The id under which the server is to know the call, at most 120 visible ASCII characters without
                spaces; random if left out. A call that is made again with the same id and the same content is answered
                again and costs nothing.
            timeout_s: Seconds each request may take, in place of the client's.

        Returns:
            An explanation, or a list of them for a list of images.

        Raises:
            InputError: An image or an option cannot be used; the message names it.
            LicenseRefusedError: The license is not good for this, or one is needed.
            QuotaSpentError: The license has not enough left.
            RateLimitedError: The license is used too fast.
            ClientError: A call failed.
        """
        exchange = exchanges.explain(
            self._memory, image, explainer=explainer, target=target, parameters=parameters, request_id=request_id
        )
        return self._run(exchange, timeout_s)

    def model(self, *, timeout_s: float | None = None) -> ModelInfo:
        """Ask what the served model is: its classes, preprocessing and explainers.

        Args:
            timeout_s: Seconds the request may take, in place of the client's.

        Returns:
            The description of the model.

        Raises:
            ClientError: The call failed.
        """
        return self._run(exchanges.describe(self._memory, refresh=True), timeout_s)

    def license(self, *, timeout_s: float | None = None) -> LicenseInfo:
        """Ask what this client's license grants, after the same checks an explanation makes.

        Args:
            timeout_s: Seconds the request may take, in place of the client's.

        Returns:
            What the license grants.

        Raises:
            LicenseRefusedError: The license is not good, or there is none.
            ClientError: The call failed.
        """
        return self._run(exchanges.license_info(self._memory), timeout_s)

    def usage(self, *, timeout_s: float | None = None) -> tuple[Quota, ...]:
        """Ask what this client's license has used.

        Args:
            timeout_s: Seconds the request may take, in place of the client's.

        Returns:
            One quota for each period: day, month, total.

        Raises:
            LicenseRefusedError: The license is not good, or there is none.
            ClientError: The call failed.
        """
        return self._run(exchanges.usage(self._memory), timeout_s)

    def estimate(self, images: int, *, explainer: str | None = None, timeout_s: float | None = None) -> Estimate:
        """Ask what a call would cost, before it is made. Nothing is charged and nothing is set aside.

        Args:
            images: How many images it would have.
            explainer: Name of the saliency method; the server's first if left out.
            timeout_s: Seconds the request may take, in place of the client's.

        Returns:
            The price, and whether the license has enough left.

        Raises:
            LicenseRefusedError: The license is not good for this.
            ClientError: The call failed.
        """
        return self._run(exchanges.estimate(self._memory, images, explainer=explainer), timeout_s)

    def prove(self, receipt: Receipt | str, *, since: str | None = None, timeout_s: float | None = None) -> Proof:
        """Ask for the proof that a receipt of this client's license is in the vendor's log, and verify it.

        Args:
            receipt: The receipt, or its token.
            since: A checkpoint that was kept, from an earlier proof: the log must go on from it.
            timeout_s: Seconds this may take, if not those of the client.

        Returns:
            The proof.

        Raises:
            ReceiptError: The receipt does not hold, or the server does not prove it (`BadReceiptError`).
            AuditLogError: The checkpoint that was kept is not to be trusted.
            LicenseError: The license is not good.
            InputError: The server knows no such receipt of this license.
            ServiceError: The server cannot be reached, or keeps no log.
        """
        return self._run(exchanges.prove(self._memory, receipt, since=since), timeout_s)

    def close(self) -> None:
        """Close the connection. Calls under way in other threads fail with `ClosedError`; closing twice is fine."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, exchange: Exchange[T], timeout_s: float | None) -> T:
        limit = self._limit(timeout_s)
        try:
            call = next(exchange)
            while True:
                answer, failure = self._make(call, limit)
                # Thrown outside of the handler, so that gRPC's own exception is not even its context.
                call = exchange.send(answer) if failure is None else exchange.throw(failure)
        except StopIteration as done:
            result: T = done.value
            return result

    def _make(self, call: Call, limit: float) -> tuple[Message | None, ClientError | None]:
        metadata = self._metadata(call)
        try:
            data = self._method(self._channel, call.method)(call.request, timeout=limit, metadata=metadata)
        except (grpc.RpcError, ValueError) as error:
            return None, self._failure(error, call, limit)
        return self._read(call, data)
