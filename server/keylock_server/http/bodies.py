"""Bodies and queries of requests: read within limits of size and time, and refused with what to do instead."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Collection
from typing import Any, Final
from urllib.parse import parse_qsl

from keylock_server.transport.statuses import RequestError

__all__ = ["GoneError", "media_type", "parse_json", "read_body", "read_query"]

_SECRETS: Final = frozenset({"token", "license", "access_token", "authorization", "key", "api_key", "bearer"})
_MAX_QUERY: Final = 4096
_DROPPING_S: Final = 10.0
_DROPPED: Final = 4

Receive = Callable[[], Any]


class GoneError(Exception):
    """The caller went away while it sent its request."""


def media_type(headers: dict[bytes, bytes]) -> str:
    """Returns what a request says that its body is, without parameters; empty where it says nothing."""
    return headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()


async def read_body(headers: dict[bytes, bytes], receive: Receive, *, most: int, patience_s: float) -> bytes:
    """Reads the body of a request.

    Args:
        headers: Of the request.
        receive: That of ASGI.
        most: The largest body, in bytes.
        patience_s: How long it may take, in seconds.

    Raises:
        RequestError: If it is too large or too slow, or encoded.
        GoneError: If the caller goes away before it is whole.
    """
    if headers.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise RequestError(417, "the header Expect knows 100-continue alone: leave it out")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RequestError(415, "compressed bodies are not taken: send the body as it is, without Content-Encoding")
    too_large = RequestError(
        413, f"the body has more than the {most} bytes that are taken: send fewer or smaller images", headers=_CLOSE
    )
    size, parts = 0, list[bytes]()
    try:
        async with asyncio.timeout(patience_s):
            if int(headers.get(b"content-length", b"0")) > most:
                await _drop(headers, receive, most=most)
                raise too_large
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise GoneError
                size += len(message["body"])
                if size > most:
                    parts.clear()
                    await _drop(headers, receive, most=most)
                    raise too_large
                parts.append(message["body"])
                if not message["more_body"]:
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise RequestError(
            408, f"the body did not come within {patience_s:g} s: send it faster, or less at once", headers=_CLOSE
        ) from None


async def _drop(headers: dict[bytes, bytes], receive: Receive, *, most: int) -> None:
    """Reads what comes of a body that is too large, because many clients look at the answer when they have sent all.

    Not of those that wait for leave to send, and not for long.
    """
    if b"expect" in headers:
        return
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DROPPING_S):
            while size <= _DROPPED * most:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


# What is left of the body is not read, so that the connection cannot go on.
_CLOSE: Final = {"connection": "close"}


def read_query(query: bytes, known: Collection[str]) -> dict[str, str]:
    """Returns the parameters in the query of an address.

    Args:
        query: As it was sent.
        known: The names there are.

    Raises:
        RequestError: If another is there, or one twice; a license above all, which would stand in logs of others.
    """
    if len(query) > _MAX_QUERY:
        raise RequestError(414, f"the query has more than {_MAX_QUERY} characters: send the rest in the body")
    found: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name.lower() in _SECRETS or (value.count(".") == 2 and value.startswith("eyJ")):
            raise RequestError(
                400,
                "a license does not belong into an address, which is logged on its way: send it in the header "
                "'Authorization: Bearer ...', and have this one replaced",
            )
        if name not in known:
            offered = ", ".join(sorted(known)) or "none"
            raise RequestError(400, f"the query parameter {name[:64]!r} is not known here: known are {offered}")
        if name in found:
            raise RequestError(400, f"the query parameter {name} is there twice: send it once")
        found[name] = value
    return found


def parse_json(body: bytes) -> Any:  # noqa: ANN401 - whatever JSON has
    """Parses JSON as RFC 8259 has it: numbers are finite, names in an object are unique.

    Raises:
        RequestError: If it is not JSON.
    """
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except UnicodeDecodeError:
        raise RequestError(400, "the body is not UTF-8: send JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise RequestError(400, f"the body is not JSON ({error.msg}, {where}): compare with docs/http.md") from None
    except RecursionError:
        raise RequestError(400, "the body is nested too deeply: send flat lists") from None
    except ValueError:  # A number with thousands of digits.
        raise RequestError(400, "the body has a number that is none of a float: send ordinary numbers") from None


def _refuse_constant(name: str) -> None:
    raise RequestError(400, f"JSON has no {name}: send finite numbers")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise RequestError(400, "an object in the body has one name twice: send each once")
    return made
