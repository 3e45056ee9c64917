"""What tests of many rooms do alike: wait, present a license, look at a refusal, and at what a server tells."""

import asyncio
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

__all__ = ["bearer", "books", "details_of", "logged", "refusal", "scrape", "slow_charges", "wait_for"]

_KINDS = (
    error_details_pb2.BadRequest,
    error_details_pb2.ErrorInfo,
    error_details_pb2.QuotaFailure,
    error_details_pb2.RequestInfo,
    error_details_pb2.RetryInfo,
)


def wait_for(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Returns when a condition holds, and fails where it does not in time."""
    limit = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def bearer(token: str | None) -> list[tuple[str, str]]:
    """The metadata of a call with a license, or without one."""
    return [] if token is None else [("authorization", f"Bearer {token}")]


def details_of(error: grpc.RpcError) -> dict[str, Any]:
    """The details of an error, by the names of their kinds."""
    found = {}
    status = rpc_status.from_call(error)
    for packed in () if status is None else status.details:
        for kind in _KINDS:
            if packed.Is(kind.DESCRIPTOR):
                found[kind.__name__] = kind()
                packed.Unpack(found[kind.__name__])
    return found


def books(store: Any) -> tuple[int, int, int]:
    """Requests and units that a store has charged, and units that are set aside; fails where its books do not agree."""
    from keylock.store.reconcile import reconcile

    with store.database.transaction(snapshot=True) as connection:
        found = reconcile(connection)
    assert found.differences == ()
    return found.requests, found.units, found.reserved


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, dict[str, Any]]:
    """The status that a call ends with, and its details; fails where the call ends well."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), details_of(caught.value)


def scrape(port: int) -> str:
    """The page of metrics at a port of this machine."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://localhost:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def logged(log: pytest.LogCaptureFixture, captured: Any) -> dict[str, str]:
    """What a server has written, in every form that its log has, and what came out of the program, by place."""
    from keylock_server.transport.logs import JsonFormatter, TextFormatter

    return {
        "log as text": "\n".join(map(TextFormatter().format, log.records)),
        "log as JSON": "\n".join(map(JsonFormatter().format, log.records)),
        "records": "\n".join(str(record.__dict__) for record in log.records),
        "output": captured.out + captured.err,
    }


def slow_charges(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lets each charge take half a second; returns the seconds that answers would wait for it, which they skip."""
    from keylock_server.metering.meter import Meter
    from keylock_server.metering.response_padding import Alarm

    charge, waits = Meter.charge, list[float]()

    async def slow(*arguments: Any, **named: Any) -> Any:
        await asyncio.sleep(0.5)
        return await charge(*arguments, **named)

    async def after(_alarm: Alarm, seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(Meter, "charge", slow)
    monkeypatch.setattr(Alarm, "after", after)
    return waits
