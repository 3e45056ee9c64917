"""What the admin service answers, read with suspicion: what makes no sense is a `BadAnswerError`."""

import math
from collections.abc import Iterable
from datetime import UTC, datetime

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from keylock.v1 import admin_pb2 as pb
from keylock_client._answers import license_info, quotas
from keylock_client._maps import senseless

__all__ = ["check_drain", "check_revoked", "check_state", "check_status", "check_usage"]

_PERIODS = ("day", "month", "total")
_STORES = ("", "sqlite", "postgresql")


def check_status(answer: pb.GetStatusResponse) -> None:
    """Returns when an answer can be the state of a server.

    Raises:
        BadAnswerError: If it cannot.
    """
    if not answer.version:
        senseless("a server without a version")
    _duration("up", answer.uptime_s)
    _time("the server was started", answer, "started_at")
    if answer.store not in _STORES:
        senseless(f"a store of the kind {answer.store[:80]!r}")
    if answer.HasField("model") != bool(answer.models) or (answer.models and answer.model != answer.models[0].model):
        senseless("the first model is not the first of the models")
    for one in answer.models:
        if not one.model.name or not all(one.explainers):
            senseless("a model or an explainer has no name")
    if not all(answer.problems):
        senseless("a check has no name")
    # An older server has none and says nothing of it.
    if answer.query_guard.mode not in ("", "off", "count", "limit"):
        senseless(f"a query guard that is {answer.query_guard.mode[:80]!r}")
    _duration("of memory", answer.query_guard.window_s)


def check_usage(answer: pb.AdminServiceGetUsageResponse, license_id: str) -> None:
    """Returns when an answer can be what a license has used.

    Args:
        answer: The answer.
        license_id: The license that was asked for.

    Raises:
        BadAnswerError: If it cannot, or is of another license.
    """
    _same_license(answer.license_id, license_id)
    quotas(answer.quotas)
    periods = [one.period for one in answer.quotas]
    if len(set(periods)) < len(periods) or not set(periods) <= set(_PERIODS):
        senseless(f"quotas of the periods {_list(periods)}")


def check_state(state: pb.LicenseState, license_id: str) -> None:
    """Returns when an answer can be a license as a store has it.

    Args:
        state: The license in the answer.
        license_id: The license that was asked for.

    Raises:
        BadAnswerError: If it cannot, or is another license.
    """
    from keylock.licensing import LicenseStatus

    _same_license(state.license.id, license_id)
    shown = license_info(state)
    if not shown.customer or not shown.models or not shown.explainers:
        senseless("a license of nobody, or for nothing")
    if not shown.not_before < shown.expires:
        senseless("a license that ends before it starts")
    if state.status not in list(LicenseStatus):
        senseless(f"a license that is {state.status[:80]!r}")
    if state.HasField("revoked_at") != (state.status == LicenseStatus.REVOKED):
        senseless("a license that is revoked and is not")
    for name in ("revoked_at", "suspended_at", "refuse_before"):
        if state.HasField(name):
            _time(f"the license has {name}", state, name)


def check_revoked(answer: pb.RevokeLicenseResponse, license_id: str) -> None:
    """Returns when an answer can be that to a revocation.

    Args:
        answer: The answer.
        license_id: The license that was meant; empty for a token, or for all licenses.

    Raises:
        BadAnswerError: If it cannot, or is about another license.
    """
    if license_id:
        check_state(answer.state, license_id)
    elif answer.HasField("state"):
        senseless("a license that nobody asked for")


def check_drain(answer: pb.DrainResponse) -> None:
    """Returns when an answer can be that of a server that drains.

    Raises:
        BadAnswerError: If it cannot.
    """
    _duration("left", answer.drain_s)


def _same_license(told: str, asked: str) -> None:
    if told != asked:
        senseless(f"the license {told[:80]!r} in place of {asked[:80]!r}")


def _duration(what: str, seconds: float) -> None:
    # Comparisons with NaN are false.
    if not 0 <= seconds < math.inf:
        senseless(f"{seconds} s {what}")


def _time(what: str, message: Message, field: str) -> datetime:
    told: Timestamp = getattr(message, field)
    try:
        return told.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        senseless(f"{what} at an impossible time")


def _list(names: Iterable[str]) -> str:
    return ", ".join(repr(name[:20]) for name in list(names)[:5])
