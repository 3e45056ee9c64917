"""Many images over one stream, for ordinary code: three threads, none of which outlives the stream.

The caller's thread gives out results. A thread of gRPC reads images and sends them, as long as not too many are under
way. A third one takes what the server sends, so that a caller who takes time over a result holds up nobody.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import grpc

from keylock.errors import KeylockError
from keylock.v1 import explanation_pb2 as pb
from keylock_client._sources import ImageLike
from keylock_client._streams import MAX_WAITING_BYTES, Images, Unreadable, cost_of

__all__ = ["Feed", "Stream"]

_Arrived: TypeAlias = bytes | Unreadable | BaseException | None


class Feed:
    """The images that are to be sent, and how many may be under way; it outlives a stream that is cut off."""

    def __init__(self, images: Images, given: Iterable[ImageLike], *, in_flight: int) -> None:
        """Takes the images, without looking at the first one."""
        self.images = images
        self._given = iter(given)
        self._places = in_flight
        self._changed = threading.Condition()
        self._reading = threading.Lock()
        self._ended = False

    @property
    def all_read(self) -> bool:
        """Whether the last image was read."""
        return self._ended

    def give_back(self) -> None:
        """Makes room for another image."""
        with self._changed:
            self._places += 1
            self._changed.notify_all()

    def wake(self) -> None:
        """Lets whoever waits for room see that its stream was stopped."""
        with self._changed:
            self._changed.notify_all()
        # Whoever is reading an image finishes that; it is then under way, and the next stream sends it.
        with self._reading:
            pass

    def next(self, stopped: threading.Event) -> pb.ExplainStreamRequest | Unreadable | None:
        """Waits for room and reads the next image.

        Args:
            stopped: Set when the stream it is for was stopped.

        Returns:
            What `Images.prepare` makes of it, or None when there is none, or the stream was stopped.
        """
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (self._places > 0 and self.images.has_room() is not None) or stopped.is_set()
                )
                if stopped.is_set():
                    return None
                self._places -= 1
            with self._reading:
                if stopped.is_set() or self._ended:
                    self.give_back()
                    return None
                room = self.images.has_room()
                if room is None:
                    # Just now an answer is counted that is under way still: in a moment it is known what it leaves.
                    self.give_back()
                    continue
                try:
                    image = next(self._given)
                except StopIteration:
                    self._ended = True
                    self.give_back()
                    return None
                if not room and self.images.budget is not None:
                    # There was another image, and it is left out.
                    self.images.budget.exhausted = self._ended = True
                    self.give_back()
                    return None
                return self.images.prepare(image)


class _Inbox:
    """What has arrived and was not looked at. Whoever puts more into it than it takes is held up."""

    def __init__(self) -> None:
        self._waiting: deque[_Arrived] = deque()
        self._bytes, self._closed = 0, False
        self._changed = threading.Condition()

    def put(self, arrived: "_Arrived") -> None:
        """Adds something, as soon as there is room; whatever its size, where nothing else is there."""
        cost = cost_of(arrived)
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._waiting or self._bytes + cost <= MAX_WAITING_BYTES)
            self._waiting.append(arrived)
            self._bytes += cost
            self._changed.notify_all()

    def get(self, limit_s: float) -> "_Arrived":
        """Takes the first thing out, or raises `queue.Empty` when nothing has come in so many seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._waiting), timeout=limit_s):
                raise queue.Empty
            arrived = self._waiting.popleft()
            self._bytes -= cost_of(arrived)
            self._changed.notify_all()
            return arrived

    def close(self) -> None:
        """Holds up nobody any more, and forgets what is in it."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()


class Stream:
    """One connection of a stream."""

    def __init__(self, feed: Feed, open_call: Callable[[Iterator[pb.ExplainStreamRequest]], Any]) -> None:
        """Opens it.

        Args:
            feed: What is to be sent.
            open_call: Makes the call, given the messages to send; returns the iterator of gRPC over the answers.
        """
        self._feed = feed
        self._stopped = threading.Event()
        self._arrived = _Inbox()
        self._begun = feed.images.begin()
        self._call = open_call(self._messages())
        self._reader = threading.Thread(target=self._read, name="keylock-client-stream", daemon=True)
        self._reader.start()

    def next(self, limit_s: float) -> bytes | Unreadable | None:
        """Waits for the next answer.

        Args:
            limit_s: For how long, since the last answer, while one is to come.

        Returns:
            The message, or an image that cannot be read; None at the end of the stream.

        Raises:
            DeadlineError: Nothing came in time.
            RpcError: The stream ended with an error.
        """
        while True:
            images = self._feed.images
            waiting = images.any_under_way
            # Also where more has come: a server that sends on and on and never an answer is as good as silent.
            if waiting and not images.left_s(limit_s):
                raise images.too_slow(limit_s)
            try:
                arrived = self._arrived.get(images.left_s(limit_s) if waiting else limit_s)
            except queue.Empty:
                if not (waiting and images.any_under_way) or images.left_s(limit_s):
                    continue
                raise images.too_slow(limit_s) from None
            if isinstance(arrived, BaseException):
                raise arrived
            return arrived

    def close(self) -> None:
        """Ends the stream, and what runs for it."""
        self._stopped.set()
        self._call.cancel()
        self._arrived.close()
        self._feed.wake()
        self._reader.join()

    def _messages(self) -> Iterator[pb.ExplainStreamRequest]:
        yield from self._begun
        while True:
            try:
                prepared = self._feed.next(self._stopped)
            except BaseException as error:  # Of the caller's own images: it belongs into the caller's thread.
                self._arrived.put(error)
                return
            if prepared is None:
                return
            if isinstance(prepared, Unreadable):
                self._arrived.put(prepared)
            else:
                yield prepared

    def _read(self) -> None:
        try:
            for data in self._call:
                self._arrived.put(data)
        except (grpc.RpcError, KeylockError, ValueError) as error:
            self._arrived.put(error)
        else:
            self._arrived.put(None)
