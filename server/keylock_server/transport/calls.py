"""The call that is being answered: its id, and what logs, metrics, spans and errors may tell about it.

It is kept in a context variable, so that whatever runs on its behalf finds it, in threads too. What callers send never
comes here, except for the id, whose length and characters are checked.
"""

import ipaddress
import re
import uuid
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

import grpc

from keylock.errors import InputError
from keylock_server.transport.statuses import Row

__all__ = [
    "Call",
    "check_request_id",
    "current_call",
    "describe_call",
    "is_request_id",
    "new_request_id",
    "set_call",
    "set_license",
    "tenant_of_peer",
]

_FAULT: Final = Row(grpc.StatusCode.INTERNAL, "INTERNAL", public=False)
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class Call:
    """A call.

    Attributes:
        method: Its full name, of a method that exists.
        request_id: Names it in logs and errors; at most 128 visible ASCII characters.
        outcome: How it ended; a fault until it is known to have ended otherwise.
        model: The model that was asked; None until one was.
        explainer: The explainer that was asked; None for others than explanations.
        keyed: Whether the key was on the images; None until that was decided.
        images: How many images there were; None until they were counted.
        tenant: With whom it shares its turns in queues: the license it presents, or the address it comes from.
        deadline: When nobody waits for its answer any more, by the clock of the event loop; None for never.
    """

    method: str
    request_id: str
    outcome: Row = _FAULT
    model: str | None = None
    explainer: str | None = None
    keyed: bool | None = None
    images: int | None = None
    tenant: str = ""
    deadline: float | None = None


_CURRENT: Final[ContextVar[Call | None]] = ContextVar("keylock_call", default=None)


def current_call() -> Call | None:
    """Returns the call on whose behalf this runs; None outside of calls."""
    return _CURRENT.get()


def set_call(call: Call) -> None:
    """Makes a call the current one, in this task and in what it starts."""
    _CURRENT.set(call)


def describe_call(*, model: str, images: int, explainer: str | None = None, keyed: bool = False) -> None:
    """Says what the current call is about; does nothing outside of calls.

    Args:
        model: Name of the model, as the bundle has it.
        images: How many images.
        explainer: Name of the explainer, as the bundle has it; None for predictions.
        keyed: Whether the key is on them.
    """
    call = current_call()
    if call is not None:
        call.model, call.images, call.explainer, call.keyed = model, images, explainer, keyed


def set_license(license_id: str) -> None:
    """Says which license the current call presents, so that calls under it take turns as one; needs no call."""
    call = current_call()
    if call is not None:
        call.tenant = f"license:{license_id}"


def tenant_of_peer(peer: str) -> str:
    """Returns with whom a caller without a license takes turns: all that come from one address.

    Args:
        peer: As gRPC names it, for example `ipv4:192.0.2.7:50123`; of an IPv6 address the first 64 bits count, because
            who has one has all of those.
    """
    kind, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    if kind == "ipv6":
        try:
            host = str(ipaddress.IPv6Network((host, 64), strict=False))
        except ValueError:
            return kind
    return f"{kind}:{host}"


def new_request_id() -> str:
    """Returns a new random id of 32 hexadecimal digits."""
    return uuid.uuid4().hex


def is_request_id(text: str | bytes) -> bool:
    """Tells whether a text can be the id of a request: 1 to 128 visible ASCII characters, without spaces."""
    return isinstance(text, str) and _REQUEST_ID.fullmatch(text) is not None


def check_request_id(text: str) -> None:
    """Returns when a text can be the id of a request.

    Raises:
        InputError: If it cannot.
    """
    if not is_request_id(text):
        raise InputError(
            "the request id is not 1 to 128 visible ASCII characters without spaces: send such a one, or none"
        )
