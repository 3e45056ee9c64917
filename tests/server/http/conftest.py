"""Servers that speak HTTP, and a client that speaks it as plainly as it can be spoken."""

import http.client
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def plain(self) -> Any:
        return json.loads(self.body)


class Web:
    """Asks a server over HTTP; each request on a connection of its own."""

    def __init__(self, calls: Any) -> None:
        self.calls, self.port = calls, calls.server.http_port

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Asks; a body that is no bytes is sent as JSON."""
        told = {} if token is None else {"Authorization": f"Bearer {token}"}
        if body is not None and not isinstance(body, bytes):
            told["Content-Type"] = "application/json"
            body = json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, told | dict(headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **options: Any) -> Reply:
        return self.ask("GET", path, **options)

    def post(self, path: str, body: Any = b"", **options: Any) -> Reply:
        return self.ask("POST", path, body, **options)


@pytest.fixture(scope="session")
def serve_web(start_server: Callable[..., Any]) -> Callable[..., Web]:
    """Starts servers that speak HTTP as well; needs the extra `http`."""
    for package in ("starlette", "uvicorn", "httptools"):
        pytest.importorskip(package)
    return lambda **settings: Web(start_server(http_port=0, **settings))


@pytest.fixture(scope="session")
def web(serve_web: Callable[..., Web]) -> Web:
    """The ordinary server."""
    return serve_web()
