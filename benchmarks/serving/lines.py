"""Asking any method of a server, over gRPC or over HTTP, with failures that look alike."""

import asyncio
import json
import random
from typing import Any, Self

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message

__all__ = ["GrpcLine", "HttpLine", "RefusedError"]

_JSON_SHARE = 0.25


class RefusedError(Exception):
    """A call ended with a status.

    Attributes:
        status: Its name as gRPC has it; `OVERLOADED` is `UNAVAILABLE` with a time to come again.
    """

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class GrpcLine:
    """A connection of gRPC."""

    def __init__(self, target: str) -> None:
        """Takes the address."""
        self._channel = grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def ask(self, path: str, request: Message, kind: Any, *, token: str | None, timeout: float) -> Any:  # noqa: ANN401
        """Asks a method, and returns the message that it answers.

        Args:
            path: Its name, for example `/keylock.v1.ExplanationService/Explain`.
            request: What is asked.
            kind: Class of the answer.
            token: The license; None for none.
            timeout: When to give up, in seconds.

        Raises:
            RefusedError: If the call ends with another status than OK.
        """
        method = self._channel.unary_unary(path, type(request).SerializeToString, kind.FromString)
        metadata = [] if token is None else [("authorization", f"Bearer {token}")]
        try:
            return await method(request, metadata=metadata, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            pushback = any(name == "grpc-retry-pushback-ms" for name, _ in error.trailing_metadata() or ())
            raise RefusedError("OVERLOADED" if pushback else error.code().name) from None


class HttpLine:
    """A connection of HTTP/1.1 that stays, and is made again after a call that was given up."""

    def __init__(self, target: str, generator: random.Random) -> None:
        """Takes the address, and what chooses between protobuf and JSON for each call."""
        self._host, _, self._port = target.rpartition(":")
        self._random = generator
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._hang_up()

    async def ask(self, path: str, request: Message, kind: Any, *, token: str | None, timeout: float) -> Any:  # noqa: ANN401
        """Asks a method, as `GrpcLine.ask` does."""
        as_json = self._random.random() < _JSON_SHARE
        body = json_format.MessageToJson(request).encode() if as_json else request.SerializeToString()
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n"
        head += f"Content-Type: application/{'json' if as_json else 'x-protobuf'}\r\n"
        head += "" if token is None else f"Authorization: Bearer {token}\r\n"
        try:
            async with asyncio.timeout(timeout):
                status, content = await self._exchange(head.encode() + b"\r\n" + body)
        except TimeoutError:
            self._hang_up()
            raise RefusedError("DEADLINE_EXCEEDED") from None
        except BaseException:
            self._hang_up()
            raise
        if status != 200:
            problem = json.loads(content)
            raise RefusedError("OVERLOADED" if "retry_after_s" in problem else problem["code"])
        return json_format.Parse(content, kind()) if as_json else kind.FromString(content)

    async def _exchange(self, sent: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, int(self._port))
        reader, writer = self._streams
        writer.write(sent)
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        content = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self._hang_up()
        return int(lines[0].split()[1]), content

    def _hang_up(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None
