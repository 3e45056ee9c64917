"""HTTP in the event loop of the server: uvicorn, with limits that it does not have by itself."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from keylock.errors import ServiceError
from keylock_server.http.failures import Failure
from keylock_server.transport.calls import new_request_id
from keylock_server.transport.descriptors import allowed_connections
from keylock_server.transport.listening import bind, join
from keylock_server.transport.statuses import RequestError

__all__ = ["HttpServer"]

_LOG: Final = logging.getLogger("keylock_server")
# Of connections, whatever uvicorn says of them: what callers send is warned of by nobody, or they would fill the log.
_CONNECTIONS: Final = logging.getLogger("keylock_server.http")
_CONNECTIONS.setLevel(logging.ERROR)
_HEADERS_S: Final = 15.0
_MAX_HEADERS: Final = 32 * 1024
_KEEP_ALIVE_S: Final = 75
_CLOSING_S: Final = 2
_NO_REQUEST: Final = (
    400,
    "what came is no request of HTTP/1.1: look whether the address begins with http or https as the server has it, and "
    "whether a header has a line break in it, such as a license file that was not made one line",
)
_LONG_ADDRESS: Final = (414, f"the address has more than {_MAX_HEADERS} bytes: send the rest in the body")
_LONG_HEAD: Final = (431, f"the head of the request has more than {_MAX_HEADERS} bytes: send fewer or shorter headers")
_SLOW_HEAD: Final = (408, "the head of the request did not come in time: send it at once")


class _Protocol(HttpToolsProtocol):
    """A connection: heads of requests are limited in size and time, and who hangs up ends the work for it.

    What cannot be given to the application because it is no request is answered here, in the same form as there.
    """

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401
        patience_s: float,
        most: int | None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*arguments, **options)
        self._patience_s, self._most = patience_s, most
        # It would write addresses with their queries, wherever the program logs anything.
        self.access_log = False
        self.logger = _CONNECTIONS
        self._leave: list[Callable[[], object]] = []
        self._head_bytes = 0
        self._in_head = False
        self._wrong: tuple[int, str] | None = None
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401
        super().connection_made(transport)
        self._wait(_HEADERS_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)
        for leave in self._leave:
            leave()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes, self._in_head = 0, True
        self._wait(_HEADERS_S)
        extensions: dict[str, Any] = {"keylock.leave": self._leave}
        if self._most is not None and len(self.connections) > self._most:
            extensions["keylock.full"] = True
        tls = self.transport.get_extra_info("ssl_object")
        if tls is not None:
            extensions["keylock.certificate"] = tls.getpeercert(binary_form=True)
        self.scope["extensions"] = extensions

    def on_url(self, url: bytes) -> None:
        self._count(url, _LONG_ADDRESS)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name + value, _LONG_HEAD)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._wait(self._patience_s)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._wait_no_more()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no request; uvicorn's text says no more than that."""
        self._refuse(*(self._wrong or _NO_REQUEST))

    def _count(self, part: bytes, wrong: tuple[int, str]) -> None:
        self._head_bytes += len(part)
        if self._head_bytes > _MAX_HEADERS:
            self._wrong = wrong
            raise ValueError(wrong[1])

    def _wait(self, seconds: float) -> None:
        """Closes the connection after a time, unless what is waited for comes."""
        self._wait_no_more()
        self._waiting = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        # Who has sent nothing has asked nothing, and what is answered already is not answered again.
        if self._in_head and (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self._refuse(*_SLOW_HEAD)
        self.timeout_keep_alive_handler()

    def _refuse(self, status: int, message: str) -> None:
        failure = Failure.of_request(RequestError(status, message), request_id=new_request_id())
        media, body = failure.as_problem()
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nx-request-id: {failure.request_id}\r\n"
        head += f"content-type: {media.decode()}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class _Server(uvicorn.Server):
    """Uvicorn's server without signals of its own: the process has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Listens for HTTP.

    Attributes:
        port: Where.
    """

    def __init__(
        self,
        application: Callable[[Any, Any, Any], Awaitable[None]],
        *,
        host: str,
        port: int,
        reuse_port: bool,
        tls: ssl.SSLContext | None,
        patience_s: float,
    ) -> None:
        """Takes the address; answers after `start`.

        Args:
            application: Answers requests.
            host: Address to listen on.
            port: Port to listen on; 0 takes a free one.
            reuse_port: Whether other processes listen on the same address.
            tls: That of TLS; None listens without.
            patience_s: How long a whole request may take to come, in seconds.

        Raises:
            ServiceError: If the address cannot be listened on.
        """
        self._socket = _listen(host, port, reuse_port=reuse_port)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            application,
            # Those that are too many are told so by the application.
            http=partial(_Protocol, patience_s=patience_s, most=allowed_connections()),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            # Addresses of callers are those of their connections: whoever is in between cannot be told from others.
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_CLOSING_S,
        )
        config.load()
        config.ssl = tls
        self._server = _Server(config)
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to answer."""
        self._running = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started and not self._running.done():
            await asyncio.sleep(0.005)

    def refuse(self) -> None:
        """Takes no new connections, and closes those that wait; what is asked already goes on."""
        self._server.should_exit = True

    async def close(self) -> None:
        """Ends; what still runs is cancelled after a moment. May be called again."""
        self.refuse()
        if self._running is None:
            self._socket.close()
            return
        await asyncio.gather(self._running, return_exceptions=True)


def _listen(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    try:
        listening = bind(host, port, reuse_port=reuse_port)
    except OSError as error:
        raise ServiceError(
            f"cannot listen on {join(host, port)} for HTTP, {error.strerror}: choose another http_port="
        ) from None
    listening.setblocking(False)
    return listening
