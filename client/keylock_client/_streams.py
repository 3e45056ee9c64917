"""What is known of a stream of images while it runs, without any input or output.

`_sync_stream` and `_async_stream` send and receive; this says what, and makes results of what comes back. An image is
under way from when it is to be sent until it was answered. When a stream is cut off, those under way are sent again,
with the same numbers and so under the same request ids, which cost nothing where they were charged already.
"""

import math
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass

from google.rpc import status_pb2

from keylock.errors import InputError, KeylockError
from keylock.imaging.grey_levels import check_bits
from keylock.v1 import explanation_pb2 as pb
from keylock_client import _answers as answers
from keylock_client._budget import Budget
from keylock_client._checks import Asked
from keylock_client._limits import RequestLimits
from keylock_client._maps import size_of_map
from keylock_client._receipts import Trust, read_receipt
from keylock_client._requests import MAX_STREAM_BYTES, check_request_id
from keylock_client._sources import ImageLike, Source, read_source
from keylock_client.errors import BadAnswerError, ClientError, ConnectionLostError, DeadlineError
from keylock_client.explanations import Explained, Explanation, Progress
from keylock_client.results import ModelInfo

__all__ = ["MAX_WAITING_BYTES", "Images", "Unreadable", "check_in_flight", "cost_of", "pause_s", "worth_another_try"]

# How much of what a server sends is taken before the caller has looked at it; then the connection holds it up.
MAX_WAITING_BYTES = 16 * 1024 * 1024
# What a message takes beside its bytes, so that a great many small ones are held up too.
_MESSAGE_BYTES = 1024

# A server takes 117 characters; the number of an image is put behind them.
_MAX_REQUEST_ID = 117
_MAX_ATTEMPTS = 5
# A stream that is quiet is ended by balancers, by most of them after half a minute or later.
_PROGRESS_EVERY_S = 10
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that cannot be read here, so that it is never sent.

    Attributes:
        number: Its place, from 0.
        name: What to call it.
        error: Why.
    """

    number: int
    name: str
    error: KeylockError


@dataclass(slots=True)
class _Unfinished:
    """An answer whose map comes in parts, which are joined as they come."""

    number: int
    answer: pb.ExplainResponse
    data: bytearray
    size: int


@dataclass(frozen=True, slots=True)
class _UnderWay:
    source: Source
    message: pb.ExplainStreamRequest


class Images:
    """The images of one `explain_many`. One thread may call `prepare` while another calls `receive`.

    Attributes:
        limits: What the server takes of an image.
        budget: What may be spent; None without a limit.
    """

    def __init__(
        self,
        options: pb.ExplainRequest,
        *,
        request_id: str | None,
        total: int | None,
        bits: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins with none.

        Args:
            options: What holds for every image.
            request_id: The id of the stream; random if left out.
            total: How many images there will be, where that is known.
            bits: How many bits the values have of images with more than eight.
            clock: Seconds, for how long an answer is waited for.

        Raises:
            InputError: The request id or the bits are unusable.
        """
        self._bits = check_bits(bits)
        self._options = pb.ExplainRequest()
        self._options.CopyFrom(options)
        self._options.answer.max_bytes = MAX_STREAM_BYTES // 2
        self._options.request_id = uuid.uuid4().hex if request_id is None else request_id
        check_request_id(self._options.request_id, longest=_MAX_REQUEST_ID)
        self._total = total
        self._clock = clock
        self._waits_since = clock()
        self.limits = RequestLimits()
        self.budget: Budget | None = None
        self._prepared, self._answered, self._failed = 0, 0, 0
        self._under_way: dict[int, _UnderWay] = {}
        self._sent_again = set[int]()
        self._unfinished: _Unfinished | None = None

    @property
    def request_id(self) -> str:
        """The id of the stream."""
        return self._options.request_id

    @property
    def explainer(self) -> str:
        """Name of the saliency method; empty for the server's first."""
        return self._options.explainer

    def has_room(self) -> bool | None:
        """Tells whether another image may be asked about; None where that is not known before others are answered."""
        return True if self.budget is None else self.budget.has_room(len(self._under_way))

    def check_budget(self) -> None:
        """Returns at the end of a stream unless an image was left out; raises `SpendingLimitError` then."""
        if self.budget is not None and self.budget.exhausted:
            raise self.budget.error(self._answered)

    @property
    def any_under_way(self) -> bool:
        """Whether an answer is to come."""
        return bool(self._under_way)

    def begin(self) -> list[pb.ExplainStreamRequest]:
        """Returns what a stream begins with: the options, and what was sent before and not answered."""
        self._unfinished = None
        start = pb.ExplainStreamStart(options=self._options, total=self._total, progress_every_s=_PROGRESS_EVERY_S)
        again = sorted(self._under_way)
        self._sent_again.update(again)
        return [pb.ExplainStreamRequest(start=start), *(self._under_way[number].message for number in again)]

    def prepare(self, image: ImageLike) -> pb.ExplainStreamRequest | Unreadable:
        """Reads the next image; returns the message to send, or why there is none."""
        number = self._prepared
        self._prepared += 1
        name = f"image {number + 1}"
        try:
            source = read_source(image, name, self.limits, bits=self._bits)
            message = pb.ExplainStreamRequest(image=pb.ExplainStreamImage(number=number, image=source.message()))
        except KeylockError as error:
            return Unreadable(number, name, error)
        if not self._under_way:
            self.wait_anew()
        self._under_way[number] = _UnderWay(source, message)
        return message

    def receive(
        self,
        message: pb.ExplainStreamResponse,
        *,
        info: ModelInfo,
        trust: Trust,
        revoked: Collection[str],
        expected: bool,
        refuse: Callable[[status_pb2.Status, str], ClientError],
    ) -> Explained | None:
        """Takes what has come.

        Args:
            message: From the server.
            info: The model.
            trust: Whose receipts to trust.
            revoked: Ids of receipt keys that were taken back.
            expected: Whether the server signs a receipt for whatever it charges.
            refuse: Makes an error of the failure of an image, given its name.

        Returns:
            The answer to an image; None where more of it is to come, or nothing but the progress has come.

        Raises:
            BadAnswerError: If it makes no sense.
            BadReceiptError: If the receipt does not hold.
        """
        outcome = message.WhichOneof("outcome")
        if outcome is None and message.HasField("progress"):
            return None
        if outcome == "map_part":
            return self._receive_part(message, info, trust, revoked, expected)
        sent = self._under_way.get(message.number)
        if self._unfinished is not None or sent is None:
            raise self._senseless(f"an answer for the image {message.number}, which waits for none")
        if outcome == "failure":
            del self._under_way[message.number]
            return self.finish(message.number, sent.source.name, error=refuse(message.failure, sent.source.name))
        if outcome != "answer" or len(message.answer.results) != 1:
            raise self._senseless("an answer without a result")
        if message.answer.results[0].skipped:
            return self._complete(message.number, message.answer, b"", info, trust, revoked, expected)
        saliency = message.answer.results[0].map
        # Taken out once: every look at it copies it.
        begun, size = saliency.data, size_of_map(saliency)
        if len(begun) < size:
            self._unfinished = _Unfinished(message.number, message.answer, bytearray(begun), size)
            return None
        return self._complete(message.number, message.answer, begun, info, trust, revoked, expected)

    def finish(
        self, number: int, name: str, *, explanation: Explanation | None = None, error: KeylockError | None = None
    ) -> Explained:
        """Counts an image that is done, and returns the result for it."""
        self.wait_anew()
        self._answered += 1
        self._failed += error is not None
        progress = Progress(answered=self._answered, failed=self._failed, total=self._total)
        return Explained(number=number, name=name, progress=progress, _explanation=explanation, error=error)

    def wait_anew(self) -> None:
        """Begins to count the time without an answer again: after an answer, or when the caller comes back for one."""
        self._waits_since = self._clock()

    def left_s(self, limit_s: float) -> float:
        """Returns how long the next answer may take still, of so many seconds; parts of an answer are none."""
        return max(0.0, limit_s - (self._clock() - self._waits_since))

    def missing(self, *, all_read: bool) -> str | None:
        """Returns how many images have no answer in words, or None where every image has one.

        Args:
            all_read: Whether the last image was read.
        """
        if self._total is not None and not (all_read and not self._under_way):
            missing = max(len(self._under_way), self._total - self._answered, 1)
            return f"{missing} of {max(self._total, missing)} images have no answer"
        if self._under_way or not all_read:
            return f"at least {max(len(self._under_way), 1)} images have no answer"
        return None

    def too_slow(self, limit_s: float) -> DeadlineError:
        """Returns the error for a stream on which nothing has come for too long, in seconds."""
        return DeadlineError(
            f"no image was answered within {limit_s:g} s: try again with the same request id, or allow more time "
            "(timeout_s=)",
            code="DEADLINE_EXCEEDED",
            request_id=self.request_id,
        )

    def _receive_part(
        self, message: pb.ExplainStreamResponse, info: ModelInfo, trust: Trust, revoked: Collection[str], expected: bool
    ) -> Explained | None:
        begun, part = self._unfinished, message.map_part
        if begun is None or begun.number != message.number:
            raise self._senseless("a part of a map that was not begun")
        if not part or len(begun.data) + len(part) > begun.size:
            raise self._senseless("a part of a map that is too long or empty")
        begun.data += part
        if len(begun.data) < begun.size:
            return None
        self._unfinished = None
        return self._complete(begun.number, begun.answer, begun.data, info, trust, revoked, expected)

    def _complete(
        self,
        number: int,
        answer: pb.ExplainResponse,
        data: bytes | bytearray,
        info: ModelInfo,
        trust: Trust,
        revoked: Collection[str],
        expected: bool,
    ) -> Explained:
        sent = self._under_way[number]
        asked = Asked(f"{self.request_id}/{number}", self._options, [sent.message.image.image], info.classes)
        receipt = read_receipt(answer, [data], asked, trust, revoked=revoked, expected=expected)
        (explanation,) = answers.explanations(answer, [data], sources=[sent.source], info=info, receipt=receipt)
        # Before it is under way no more: another thread asks meanwhile whether there is room for one.
        if self.budget is not None:
            self.budget.count(explanation.usage, again=number in self._sent_again)
        del self._under_way[number]
        return self.finish(number, sent.source.name, explanation=explanation)

    def _senseless(self, what: str) -> BadAnswerError:
        return BadAnswerError(
            f"the server's stream makes no sense ({what}): check that client and server fit together",
            request_id=self.request_id,
        )


def cost_of(arrived: object) -> int:
    """Returns how much something that has arrived counts of `MAX_WAITING_BYTES`."""
    return _MESSAGE_BYTES + (len(arrived) if isinstance(arrived, bytes) else 0)


def check_in_flight(in_flight: int) -> int:
    """Returns how many images may be under way, or raises `InputError`."""
    if isinstance(in_flight, bool) or not isinstance(in_flight, int) or not 0 < in_flight <= 4096:
        raise InputError(f"in_flight is a number of images from 1 to 4096, not {in_flight!r}")
    return in_flight


def worth_another_try(error: ClientError, *, attempts: int, waiting: bool) -> bool:
    """Tells whether a stream that was cut off should be opened again.

    Args:
        error: Why it was.
        attempts: How often it was opened since the last answer.
        waiting: Whether answers are to come: servers and balancers end a stream that is still for long, also where the
            images are what is slow to come.
    """
    if not waiting and (error.code == "DEADLINE_EXCEEDED" or isinstance(error, ConnectionLostError)):
        return True
    lost = isinstance(error, ConnectionLostError) or error.code == "UNAVAILABLE"
    return lost and attempts < _MAX_ATTEMPTS


def pause_s(error: ClientError, *, attempts: int) -> float:
    """Returns how long to wait before a stream is opened again, in seconds."""
    asked = getattr(error, "retry_after_s", None) or 0.0
    return min(_LONGEST_PAUSE_S, max(asked, _FIRST_PAUSE_S * math.pow(2, attempts - 1)))
