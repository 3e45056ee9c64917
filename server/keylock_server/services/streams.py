"""A stream of images: each is explained and charged by itself, and answered as soon as it is ready.

The stream takes up a few images at a time and reads no more until answers were sent, so that neither a fast sender nor
a slow reader makes it grow. An image that cannot be explained is answered with its failure. What concerns every image
ends the stream: no more are read, those under way are answered, and then the error is raised. Where a single call is
told to come again, because the server is full or the license used too fast, a stream waits. Where the caller wishes it,
a stream that is quiet says now and then how far it is.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from google.rpc import status_pb2

from keylock.errors import InputError, LicenseError, LicenseReason, RequestReusedError
from keylock.v1 import explanation_pb2 as pb
from keylock_server.guard.refusal import SimilarQueriesError
from keylock_server.transport.calls import check_request_id, current_call, new_request_id, set_call
from keylock_server.transport.fields import at_field
from keylock_server.transport.logs import log_fault
from keylock_server.transport.statuses import DeadlineError, LeavingError, retry_after, row_of, status_of

__all__ = ["ImageStream", "StreamLimits"]

_LONGEST_ID: Final = 117
_OF_ONE_IMAGE: Final = (InputError, RequestReusedError, SimilarQueriesError)


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What one stream may hold.

    Attributes:
        in_flight: Images that are taken up and not answered yet.
        image_s: How long an image may take, and how long a stream may be still, in seconds.
    """

    in_flight: int
    image_s: float


@dataclass(frozen=True, slots=True)
class _Outcome:
    number: int
    answer: pb.ExplainResponse | status_pb2.Status


class ImageStream:
    """One stream. Made and used in the event loop, and run once."""

    def __init__(
        self,
        limits: StreamLimits,
        *,
        begin: Callable[[pb.ExplainRequest], Awaitable[None]],
        explain: Callable[[pb.ExplainRequest], Awaitable[pb.ExplainResponse]],
        send: Callable[[pb.ExplainStreamResponse], Awaitable[None]],
        leaving: asyncio.Event,
    ) -> None:
        """Makes the stream.

        Args:
            limits: What it may hold.
            begin: Raises where every image would be refused; given the options.
            explain: Answers a request with one image.
            send: Sends a message; returns when there is room for the next one.
            leaving: Set when the server takes no new work any more.
        """
        self._limits, self._begin, self._explain, self._send = limits, begin, explain, send
        self._leaving = leaving
        # Held by the one image that waits because it was told to come again: the others wait behind it.
        self._turn = asyncio.Lock()
        self._slots = asyncio.Semaphore(limits.in_flight)
        self._outcomes: asyncio.Queue[_Outcome | None] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._progress = pb.Progress()
        self._progress_every_s: int | None = None

    async def run(self, requests: AsyncIterator[pb.ExplainStreamRequest], *, part_bytes: Callable[[], int]) -> None:
        """Answers a stream until it ends.

        Args:
            requests: What the caller sends.
            part_bytes: Returns how many bytes of a map one message may have; asked once the options are known.

        Raises:
            InputError: If a message is wrong in itself.
            DeadlineError: If an image took too long, or nothing has moved for long.
            LeavingError: If the server stops.
            KeylockError: What concerns every image, as `Explain` raises it.
        """
        try:
            async with asyncio.timeout(self._limits.image_s) as limit:
                options = await self._open(requests)
                await self._check(options)
                self._stir(limit)
                watching = asyncio.create_task(self._watch())
                working = asyncio.create_task(self._work(requests, options, limit))
                try:
                    while (outcome := await self._next()) is not None:
                        for message in self._messages(outcome, part_bytes()):
                            await self._send(message)
                            self._stir(limit)
                        self._slots.release()
                finally:
                    await self._stop(watching, working)
        except TimeoutError:
            if limit.expired():
                raise DeadlineError(self._limits.image_s, limit="the server's limit for an image of a stream") from None
            raise
        if self._failure is not None:
            raise self._failure

    async def _next(self) -> _Outcome | None:
        """Waits for what is to be sent next, and meanwhile says how far the stream is, as often as was asked for.

        That moves nothing: a stream that stands still ends when its time is over, whatever it says.
        """
        while True:
            try:
                async with asyncio.timeout(self._progress_every_s):
                    return await self._outcomes.get()
            except TimeoutError:
                await self._send(pb.ExplainStreamResponse(progress=self._progress))

    async def _open(self, requests: AsyncIterator[pb.ExplainStreamRequest]) -> pb.ExplainRequest:
        """Reads the first message: what holds for every image."""
        first = await anext(requests, None)
        with at_field("start"):
            if first is None or not first.HasField("start"):
                raise InputError("the first message of a stream has its options: set its field start")
        options = first.start.options
        with at_field("start.options.images"):
            if options.images:
                raise InputError("the options of a stream have no images: send each in a message of its own")
        with at_field("start.options.request_id"):
            given, options.request_id = options.request_id, options.request_id or new_request_id()
            check_request_id(options.request_id)
            if len(options.request_id) > _LONGEST_ID:
                raise InputError(f"the request id of a stream has at most {_LONGEST_ID} characters")
        call = current_call()
        if given and call is not None:
            call.request_id = given
        if first.start.HasField("total"):
            self._progress.total = first.start.total
        self._progress_every_s = first.start.progress_every_s or None
        return options

    async def _check(self, options: pb.ExplainRequest) -> None:
        """Ends the stream where every image would be refused."""
        try:
            await self._begin(options)
        except (InputError, LicenseError) as error:
            if error.field is not None:
                error.field = f"start.options.{error.field}"
            raise

    async def _watch(self) -> None:
        await self._leaving.wait()
        self._fail(LeavingError())

    async def _work(
        self, requests: AsyncIterator[pb.ExplainStreamRequest], options: pb.ExplainRequest, limit: asyncio.Timeout
    ) -> None:
        """Reads until there is no more to read, lets what is under way finish, and marks the end."""
        self._reading = asyncio.create_task(self._read(requests, options, limit))
        if self._failure is not None:
            self._reading.cancel()
        await asyncio.wait({self._reading})
        if not self._reading.cancelled() and (error := self._reading.exception()) is not None:
            self._fail(error)
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._outcomes.put_nowait(None)

    async def _read(
        self, requests: AsyncIterator[pb.ExplainStreamRequest], options: pb.ExplainRequest, limit: asyncio.Timeout
    ) -> None:
        last = -1
        while True:
            # A place first, so that what cannot be taken up stays with its sender.
            await self._slots.acquire()
            message = await anext(requests, None)
            if message is None:
                return
            self._stir(limit)
            with at_field("image"):
                if not message.HasField("image"):
                    raise InputError("after the first message of a stream each has an image: set its field image")
            number = message.image.number
            with at_field("image.number"):
                if number <= last:
                    raise InputError(f"the image {number} comes after the image {last}: number images upwards")
            last = number
            self._progress.received += 1
            task = asyncio.create_task(self._take_up(number, message.image.image, options))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _take_up(self, number: int, image: pb.Image, options: pb.ExplainRequest) -> None:
        """Explains one image; this is the task of that image alone."""
        request = pb.ExplainRequest(images=[image])
        request.MergeFrom(options)
        request.request_id = f"{options.request_id}/{number}"
        call = current_call()
        if call is not None:
            set_call(replace(call, request_id=f"{call.request_id}/{number}"))
        try:
            answer = await self._explain_patiently(request, None if call is None else call.deadline)
        except Exception as error:
            if not _is_of_one_image(error):
                self._fail(error)
                return
            error_id = uuid.uuid4().hex[:12]
            if not row_of(error).public:
                log_fault(error, f"error {error_id}")
            failure = status_of(error, error_id=error_id, request_id=request.request_id)
            self._outcomes.put_nowait(_Outcome(number, failure))
        else:
            self._outcomes.put_nowait(_Outcome(number, answer))

    async def _explain_patiently(self, request: pb.ExplainRequest, ends: float | None) -> pb.ExplainResponse:
        """Explains one image, and tries again where the server is full or the license used too fast."""
        try:
            return await self._try(request, ends)
        except Exception as error:
            pause_s = _pause_of(error)
            if pause_s is None:
                raise
        async with self._turn:
            until = asyncio.get_running_loop().time() + self._limits.image_s
            while True:
                await asyncio.sleep(pause_s)
                try:
                    return await self._try(request, ends)
                except Exception as error:
                    pause_s = _pause_of(error)
                    if pause_s is None or asyncio.get_running_loop().time() + pause_s >= until:
                        raise

    async def _try(self, request: pb.ExplainRequest, ends: float | None) -> pb.ExplainResponse:
        call = current_call()
        if call is not None:
            deadline = asyncio.get_running_loop().time() + self._limits.image_s
            call.deadline = deadline if ends is None else min(deadline, ends)
        return await self._explain(request)

    def _messages(self, outcome: _Outcome, part_bytes: int) -> Iterator[pb.ExplainStreamResponse]:
        """Makes the messages that answer an image."""
        self._progress.answered += 1
        call = current_call()
        if call is not None:
            call.images = self._progress.answered
        if isinstance(outcome.answer, status_pb2.Status):
            self._progress.failed += 1
            yield pb.ExplainStreamResponse(number=outcome.number, failure=outcome.answer, progress=self._progress)
            return
        (result,) = outcome.answer.results
        if result.skipped:
            yield pb.ExplainStreamResponse(number=outcome.number, answer=outcome.answer, progress=self._progress)
            return
        data = result.map.data
        result.map.data = data[:part_bytes]
        yield pb.ExplainStreamResponse(number=outcome.number, answer=outcome.answer, progress=self._progress)
        for start in range(part_bytes, len(data), part_bytes):
            yield pb.ExplainStreamResponse(number=outcome.number, map_part=data[start : start + part_bytes])

    def _fail(self, error: BaseException) -> None:
        """Ends the stream with an error, once what is under way is done."""
        if self._failure is None:
            self._failure = error
        if self._reading is not None:
            self._reading.cancel()

    def _stir(self, limit: asyncio.Timeout) -> None:
        """Notes that something has moved."""
        limit.reschedule(asyncio.get_running_loop().time() + self._limits.image_s)

    async def _stop(self, *tasks: asyncio.Task[None]) -> None:
        """Ends everything that still runs for the stream; what was not answered gives back what it has set aside."""
        running = {*tasks, *self._tasks} | ({self._reading} if self._reading is not None else set())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _pause_of(error: Exception) -> float | None:
    """Returns how long a stream waits with an image before it tries again; None where it does not."""
    return None if _is_of_one_image(error) else retry_after(error)


def _is_of_one_image(error: Exception) -> bool:
    """Tells whether an error says nothing about other images of the stream: its own, or a fault of the server."""
    if isinstance(error, LicenseError):
        return error.reason is LicenseReason.IMAGE_TOO_LARGE
    return isinstance(error, _OF_ONE_IMAGE) or not row_of(error).public
