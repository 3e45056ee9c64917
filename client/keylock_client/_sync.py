"""The client for ordinary code and threads, on the synchronous stack of gRPC."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

import grpc
from google.protobuf.message import Message

from keylock_client import _exchanges as exchanges
from keylock_client._base import BaseClient
from keylock_client._budget import check_max_units
from keylock_client._calls import Call, Exchange
from keylock_client._requests import ExplainOptions
from keylock_client._sources import ImageLike
from keylock_client._streams import Unreadable, check_in_flight, pause_s, worth_another_try
from keylock_client._sync_stream import Feed, Stream
from keylock_client.charges import Estimate, LicenseInfo, Proof, Quota, Receipt
from keylock_client.errors import ClientError, LicenseRefusedError
from keylock_client.explanations import Explained, Explanation, Progress
from keylock_client.results import ModelInfo, Prediction

__all__ = ["Client"]

T = TypeVar("T")
# What is asked when the time is all but up has this long, in seconds.
_LEAST_S = 0.05


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
        self, image: ImageLike, *, bits: int | None = ..., timeout_s: float | None = ...
    ) -> Prediction: ...
    @overload
    def predict(
        self, image: Sequence[ImageLike], *, bits: int | None = ..., timeout_s: float | None = ...
    ) -> list[Prediction]: ...
    def predict(
        self, image: ImageLike | Sequence[ImageLike], *, bits: int | None = None, timeout_s: float | None = None
    ) -> Prediction | list[Prediction]:
        """Classify images. This needs no license, and none is sent unless the server's query guard asks for one.

        A long list is sent in several requests, one after the other, so that none is too large for the server.

        Args:
            image: One image or a list of them: paths, bytes of image files, Pillow images, uint8 pixels
                `(height, width, 3)`, or preprocessed float arrays `(channels, height, width)`. An array with a batch
                dimension counts as a list.
            bits: How many bits the values have of images with more than eight, 8 to 16. Without it the server takes
                what its model was trained with, or what the file says.
            timeout_s: Seconds the call may take, in place of the client's; each request of a long list.

        Returns:
            A prediction, or a list of them for a list of images.

        Raises:
            InputError: An image cannot be used; the message names it.
            SimilarQueriesError: An image is a near copy of too many others; ask for labels alone, or later.
            ClientError: A call failed.
        """
        return self._run(exchanges.predict(self._memory, image, bits=bits), timeout_s)

    @overload
    def label(  # type: ignore[overload-overlap]
        self, image: ImageLike, *, bits: int | None = ..., timeout_s: float | None = ...
    ) -> str: ...
    @overload
    def label(
        self, image: Sequence[ImageLike], *, bits: int | None = ..., timeout_s: float | None = ...
    ) -> list[str]: ...
    def label(
        self, image: ImageLike | Sequence[ImageLike], *, bits: int | None = None, timeout_s: float | None = None
    ) -> str | list[str]:
        """Name the most probable class of images and nothing else, as `predict` does otherwise.

        Servers answer more near copies of one picture with labels than with anything else.
        """
        return self._run(exchanges.label(self._memory, image, bits=bits), timeout_s)

    @overload
    def explain(  # type: ignore[overload-overlap]
        self, image: ImageLike, **options: Unpack[ExplainOptions]
    ) -> Explanation: ...
    @overload
    def explain(self, image: Sequence[ImageLike], **options: Unpack[ExplainOptions]) -> list[Explanation]: ...
    def explain(
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
        """Explain what the model sees in images. Without a license the maps are decoys, marked `keyed=False`.

        A long list is sent in several requests, one after the other, so that none is too large for the server.

        Args:
            image: One image or a list of them, as in `predict`.
            explainer: Name of the saliency method; the server's first if left out.
            target: Label or index of the class to explain, for all images; if left out, the class that the network
                behind the map predicts for each. Servers want a license for another one.
            parameters: Parameters of the explainer to insist on. They are fixed by the vendor: others than those in
                use are refused.
            map_dtype: Type in which maps travel: `float32` if left out, `float16` or `uint8` for a half or a quarter of
                the bytes. `Explanation.map` is float32 in any case, and then not quite exact.
            prediction: Which prediction `Explanation.prediction` is: `public`, the one that `predict` gives and
                everybody gets, or `keyed`, the one of the network with the key, which a true map is about and which
                needs a license. They differ a little.
            explain_if: Which images to explain, by their public predictions; all if left out. `"probability < 0.8"`,
                `"margin < 0.2"` (between the two most probable classes) or `"class in cat, dog"`. Every image gets a
                prediction, and those alone that meet the condition a map and a charge: of the others
                `Explanation.explained` is False. While the call runs, units are set aside for all of them.
            bits: As of `predict`.
            request_id: The id under which the server is to know the call, at most 120 visible ASCII characters without
                spaces; random if left out. A call that is made again with the same id and the same content is answered
                again and costs nothing.
            max_units: How many units the call may cost; where it might cost more, nothing is asked. Without a license
                nothing costs anything.
            timeout_s: Seconds the call may take, in place of the client's; each request of a long list.

        Returns:
            An explanation, or a list of them for a list of images.

        Raises:
            InputError: An image or an option cannot be used; the message names it.
            LicenseRefusedError: The license is not good for this, or one is needed.
            QuotaSpentError: The license has not enough left.
            RateLimitedError: The license is used too fast.
            SpendingLimitError: It may cost more than `max_units`.
            SimilarQueriesError: There is no license, and an image is a near copy of too many others.
            ClientError: A call failed.
        """
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
        return self._run(exchange, timeout_s)

    def disclose(
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
        """Explain an image to somebody who has a right to it, as the license is entitled to; see docs/law.md.

        It costs no units and is counted apart, within the bounds of the license: so many a day, also where the quota is
        spent, and for some time where the license is suspended for non-payment. Reason and subject stand in the
        vendor's log, the subject as a digest. The map is the true one, or the call is refused.

        Args:
            image: One image, as in `predict`.
            reason: Why: `affected_person`, `authority`, `court` or `review`.
            subject: A pseudonym of the one it is about, 1 to 200 characters. It is not sent, but its digest with the id
                of the license. Take a random one and keep the list.
            explainer: Name of the saliency method; the server's first if left out.
            target: Label or index of the class to explain; the predicted one if left out.
            bits: As of `predict`.
            request_id: As of `explain`.
            timeout_s: Seconds the call may take, in place of the client's.

        Returns:
            The explanation, always with the true map.

        Raises:
            InputError: The image, the reason or the subject cannot be used.
            LicenseRefusedError: The license is not good for this, or not entitled to it.
            QuotaSpentError: As many disclosures were made as the license allows.
            ClientError: The call failed.
        """
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
        return self._run(exchange, timeout_s)

    def explain_many(
        self,
        images: Iterable[ImageLike],
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
    ) -> Iterator[Explained]:
        """Explain many images over one stream, and give out each result as soon as it is there.

            for result in client.explain_many(paths, progress=print):
                result.explanation.save(f"{result.number}.png")

        Images are read and sent while results come back, at most `in_flight` of them at once, so that any number of
        them takes little memory: give a generator rather than a list of arrays. Each image is charged by itself. One
        that cannot be read or explained is a result with an `error`, and the others go on. Leaving the loop ends the
        stream; what was not answered by then is not charged.

        A stream that is cut off is opened again a few times, and what was not answered is sent again, under the same
        request ids, so that nothing is charged twice.

        Args:
            images: Images as `explain` takes them, one after the other. They are read in another thread.
            explainer: Name of the saliency method; the server's first if left out.
            target: Label or index of the class to explain, for all images; if left out, the class that the network
                behind the map predicts for each. Servers want a license for another one.
            parameters: Parameters of the explainer to insist on.
            map_dtype: Type in which maps travel, as in `explain`.
            prediction: Which prediction to give, as in `explain`.
            explain_if: Which images to explain, as in `explain`.
            bits: As of `predict`.
            request_id: The id of the whole, at most 117 visible ASCII characters without spaces; random if left out.
                Given again with the same images in the same order, what was charged before costs nothing.
            max_units: How many units the whole may cost. An image that might cost more than is left is not asked about:
                the loop gives out what was answered, and ends with `SpendingLimitError`.
            in_flight: How many images are on their way, or answered and not given out yet.
            progress: Called with how far the stream is, before each result.
            timeout_s: Seconds without a whole answer after which the stream is given up, in place of the client's.

        Yields:
            One result for each image, as they are ready.

        Raises:
            InputError: An option cannot be used.
            LicenseRefusedError: The license is not good for this, or one is needed.
            QuotaSpentError: The license has not enough left.
            SpendingLimitError: Images were left out because of `max_units`; after what was answered.
            ClientError: The stream failed for another reason, and opening it again did not help.
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

    def _give_out(
        self, feed: Feed, limit: float, progress: Callable[[Progress], object] | None, max_units: int | None
    ) -> Iterator[Explained]:
        info = self._run(exchanges.describe(self._memory), limit)
        feed.images.limits = info.limits
        if max_units is not None:
            budget = self._run(exchanges.budget(self._memory, max_units, explainer=feed.images.explainer), limit)
            feed.images.budget = budget
        attempts, renewed = 0, False
        while True:
            access = self._run(exchanges.access(self._memory), limit) if self._memory.exchanges else None
            call = self._stream_call(feed.images, access)
            stream = Stream(feed, self._opener(self._channel, call))
            try:
                while True:
                    message, failure = self._next(stream, call, limit)
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
                        info = self._run(exchanges.catch_up(self._memory, message, info), left)
                        taken = self._take(message, feed.images, info, call)
                        if taken is None:
                            continue
                        explained = taken
                    attempts, renewed = 0, False
                    if progress is not None:
                        progress(explained.progress)
                    yield explained
                    # The time that the caller takes is not the server's.
                    feed.images.wait_anew()
                    feed.give_back()
            finally:
                stream.close()
            attempts += 1
            if isinstance(failure, LicenseRefusedError) and self._memory.exchanges and not renewed:
                # The access token has run out, or the server was started again and does not know it.
                self._memory.access, renewed = None, True
                continue
            if not worth_another_try(failure, attempts=attempts, waiting=feed.images.any_under_way):
                raise failure from None
            time.sleep(pause_s(failure, attempts=attempts))

    def _next(self, stream: Stream, call: Call, limit: float) -> tuple[Message | Unreadable | None, ClientError | None]:
        """Return what a stream gives next, None at its end, and why it was cut off, if it was."""
        try:
            arrived = stream.next(limit)
        except (grpc.RpcError, ValueError) as error:
            return None, self._failure(error, call, limit)
        return self._read_stream(call, arrived), None

    def _run(self, exchange: Exchange[T], timeout_s: float | None) -> T:
        limit = self._limit(timeout_s)
        ends = time.monotonic() + limit
        try:
            call = next(exchange)
            while True:
                if call.begins_anew:
                    ends = time.monotonic() + limit
                answer, failure = self._make(call, limit, left=max(ends - time.monotonic(), _LEAST_S))
                # Thrown outside of the handler, so that gRPC's own exception is not even its context.
                call = exchange.send(answer) if failure is None else exchange.throw(failure)
        except StopIteration as done:
            result: T = done.value
            return result

    def _make(self, call: Call, limit: float, *, left: float) -> tuple[Message | None, ClientError | None]:
        metadata = self._metadata(call)
        try:
            data = self._method(self._channel, call.method)(call.request, timeout=left, metadata=metadata)
        except (grpc.RpcError, ValueError) as error:
            return None, self._failure(error, call, limit)
        return self._read(call, data)
