"""What tests of many rooms do alike: wait, present a license, and look at a refusal."""

import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

__all__ = ["bearer", "books", "details_of", "refusal", "wait_for"]

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
