"""What answers cost: units set aside before the work, charged after it, given back where it fails.

Explanations for a license fail closed: when the store cannot be used they are refused. Predictions, and decoys for
callers without a license, never come here.
"""

import asyncio
import contextvars
import logging
import secrets
from calendar import timegm
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from keylock.errors import AuditLogError, KeylockError, ServiceError, StoreError, StoreReplacedError
from keylock.licensing import AnswerDigests, Charge, License, Quota, UsageNote
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import license_pb2
from keylock_server.transport.statuses import NoMeteringError, StoreLostError

if TYPE_CHECKING:
    from keylock.store.counters import Window
    from keylock.store.ledger import ChargeRequest, ChargeResult, Ledger, Reservation

__all__ = ["Meter", "Metered", "describe_disclosure", "describe_windows", "order_for", "timestamp", "usage_note"]

T = TypeVar("T")

_LOG: Final = logging.getLogger("keylock_server")
_ANY: Final = "*"
_REAP_EVERY_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Metered:
    """What an answer cost.

    Attributes:
        usage: What the caller is told about its price.
        entry: What was charged, by this call or by an earlier one for the same request, and what this answer is: what
            its receipt signs. None where use is not recorded, so that nothing was charged.
        note: The part of `usage` that the entry does not say; None where there is none.
    """

    usage: pb.Usage
    entry: bytes | None = None
    note: UsageNote | None = None


class Meter:
    """Charges licenses for answers.

    Attributes:
        now: The clock, in UTC.
    """

    def __init__(
        self,
        ledger: "Ledger | None",
        *,
        prices: Mapping[str, int],
        lifetime_s: float,
        now: Callable[[], datetime],
        observe: Callable[[str, str, int], None],
    ) -> None:
        """Makes the meter.

        Args:
            ledger: Where use is recorded; without it licenses that have limits are refused, and the others are not
                recorded.
            prices: Units of one image by explainer; `*` is for those that are not named, 1 where that is not either.
            lifetime_s: Longer than any call may take, in seconds: after it, what a dead server set aside is taken back.
            now: The clock, in UTC.
            observe: Told model, explainer and units of whatever is charged, repeats left out.
        """
        self._ledger, self._observe = ledger, observe
        self._prices = dict(prices)
        self._lifetime_s = lifetime_s
        self.now = now
        self._reaper: asyncio.Task[None] | None = None

    @property
    def records(self) -> bool:
        """Whether use is recorded, so that every answer to a license is charged."""
        return self._ledger is not None

    def units_per_image(self, explainer: str) -> int:
        """Returns what one image costs."""
        return self._prices.get(explainer, self._prices.get(_ANY, 1))

    async def charge(
        self,
        license: License,
        *,
        request: Charge,
        work: Callable[[tuple[bool, ...] | None], Awaitable[AnswerDigests]],
    ) -> Metered:
        """Does the work of a request and charges for it, or neither.

        Args:
            license: Who pays, as the store has it.
            request: What is asked for; the digests of the answer are empty and its time is that of the call.
            work: Computes the answer, and returns its digests; given which images of a request with a condition are to
                be explained because they were before, or None.

        Raises:
            MeteringError: If it does not fit what the license has left.
            ServiceError: If use cannot be recorded.
            KeylockError: Whatever the work raises; then nothing is charged.
        """
        if self._ledger is None:
            return await self._unrecorded(license, request, work)
        order = order_for(license, request)
        ledger = self._ledger
        reservation = await self._durable(lambda: self._reserve(ledger, order), order)
        try:
            digests = await work(reservation.explained)
            charge = replace(request, answer=digests, time=self.now().replace(microsecond=0))
        except BaseException:
            self._give_back(order)
            raise
        result = await self._durable(lambda: ledger.commit(reservation, charge), order)
        if not result.repeated:
            self._observe(request.model_name, request.explainer, result.charge.units)
        note = usage_note(result)
        return Metered(_usage(result.charge, note), result.entry, note)

    async def windows(self, license: License) -> "tuple[Window, ...]":
        """Looks up what a license has used.

        Raises:
            ServiceError: If that cannot be found out.
        """
        if self._ledger is None:
            raise NoMeteringError
        try:
            return await asyncio.to_thread(self._ledger.windows, license, now=self.now())
        except StoreError as error:
            raise _unavailable(error) from None

    async def disclosures(self, license: License) -> license_pb2.DisclosureUse | None:
        """Looks up how many disclosures of a license were made; None where it is entitled to none.

        Raises:
            ServiceError: If that cannot be found out.
        """
        if license.disclosure is None:
            return None
        if self._ledger is None:
            raise NoMeteringError
        try:
            today, total = await asyncio.to_thread(self._ledger.disclosures, license.id, now=self.now())
        except StoreError as error:
            raise _unavailable(error) from None
        return license_pb2.DisclosureUse(terms=describe_disclosure(license), today=today, total=total)

    def problem(self) -> str | None:
        """Returns what keeps use from being recorded, in words for the operator; None where nothing does."""
        return None if self._ledger is None else self._ledger.problem()

    def start(self) -> None:
        """Begins to take back what dead servers have set aside; called in the event loop."""
        if self._ledger is not None:
            self._reaper = asyncio.create_task(self._reap(self._ledger))

    async def close(self) -> None:
        """Finishes what was handed over to the store."""
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.gather(self._reaper, return_exceptions=True)
        if self._ledger is not None:
            await asyncio.to_thread(self._ledger.close)

    async def _unrecorded(
        self,
        license: License,
        request: Charge,
        work: Callable[[tuple[bool, ...] | None], Awaitable[AnswerDigests]],
    ) -> Metered:
        if request.disclosure is not None or license.quota != Quota() or license.rate is not None:
            raise NoMeteringError
        explained = (await work(None)).explained
        units = request.units // len(explained) * sum(explained)
        return Metered(pb.Usage(units=units, license_id=license.id))

    def _reserve(self, ledger: "Ledger", order: "ChargeRequest") -> "Future[Reservation]":
        return ledger.reserve(order, now=self.now(), lifetime_s=self._lifetime_s)

    async def _durable(self, begin: "Callable[[], Future[T]]", order: "ChargeRequest") -> T:
        """Waits for the store; when the caller goes away meanwhile, what was not charged is given back."""
        try:
            return await asyncio.wrap_future(begin())
        except (StoreError, AuditLogError) as error:
            self._give_back(order)
            raise _unavailable(error) from None
        except asyncio.CancelledError:
            # Queued behind the operation, or in its place; a charge that went through stays, and a repeat is free.
            self._give_back(order)
            raise

    def _give_back(self, order: "ChargeRequest") -> None:
        if self._ledger is None:
            return
        try:
            # With the context of the call, so that what is logged then has its id.
            context = contextvars.copy_context()
            self._ledger.release(order).add_done_callback(lambda future: context.run(_log_failure, future))
        except StoreError as error:
            _LOG.error("%s", error)

    async def _reap(self, ledger: "Ledger") -> None:
        failing = False
        while True:
            await asyncio.sleep(_REAP_EVERY_S)
            try:
                count = await asyncio.wrap_future(ledger.reap(now=self.now()))
            except StoreError as error:
                # Said once, and again when it happens again.
                if not failing:
                    _LOG.error("%s", error)
                failing = True
                continue
            failing = False
            if count:
                _LOG.warning("took back %d reservations that had expired", count)


def describe_windows(windows: "Sequence[Window]") -> list[pb.QuotaWindow]:
    """Writes quotas into messages."""
    return [
        pb.QuotaWindow(period=one.period, limit=one.limit, used=one.used, resets_at=timestamp(one.resets_at))
        for one in windows
    ]


def describe_disclosure(license: License) -> license_pb2.DisclosureTerms | None:
    """Writes what disclosures a license is entitled to into a message; None where to none."""
    terms = license.disclosure
    if terms is None:
        return None
    return license_pb2.DisclosureTerms(per_day=terms.per_day, total=terms.total, suspended_days=terms.suspended_days)


def timestamp(moment: datetime | None) -> Timestamp | None:
    """Writes a time into a message; None stays None."""
    if moment is None:
        return None
    # Several times as fast as `FromDatetime`, for which every answer would wait.
    return Timestamp(seconds=timegm(moment.utctimetuple()), nanos=moment.microsecond * 1000)


def order_for(license: License, request: Charge) -> "ChargeRequest":
    """Returns what is to be set aside for a request.

    Args:
        license: Who pays, as the store has it.
        request: What is asked for.
    """
    from keylock.store.ledger import ChargeRequest

    return ChargeRequest(
        license=license,
        request_id=request.request_id,
        request_digest=request.request_digest,
        model_digest=request.model_digest,
        explainer=request.explainer,
        images=len(request.image_digests),
        units=request.units,
        attempt=secrets.token_hex(8),
        disclosure=None if request.disclosure is None else request.disclosure.reason,
    )


def usage_note(result: "ChargeResult") -> UsageNote:
    """Returns what a caller is told about its use beside the charge."""
    limited = [window for window in result.windows if window.remaining is not None]
    tightest = min(limited, key=lambda window: window.remaining or 0, default=None)
    resets_at = None if tightest is None else tightest.resets_at
    return UsageNote(
        replayed=result.repeated,
        overage_units=result.overage,
        remaining=None if tightest is None else tightest.remaining,
        resets_at=None if resets_at is None else int(resets_at.timestamp()),
    )


def _usage(charge: Charge, note: UsageNote) -> pb.Usage:
    return pb.Usage(
        units=charge.units,
        license_id=charge.license_id,
        replayed=note.replayed,
        overage_units=note.overage_units,
        remaining=note.remaining,
        resets_at=None if note.resets_at is None else Timestamp(seconds=note.resets_at),
        charged_at=timestamp(charge.time),
    )


def _unavailable(error: KeylockError) -> ServiceError:
    # The store's own messages are for the vendor: they name files and addresses of the vendor's machines.
    _LOG.error("%s", error)
    if isinstance(error, StoreReplacedError):
        return StoreLostError()
    return ServiceError("use cannot be recorded at the moment, so nothing is explained: try again later")


def _log_failure(future: "Future[bool]") -> None:
    error = None if future.cancelled() else future.exception()
    if error is not None:
        _LOG.error("%s", error if isinstance(error, KeylockError) else type(error).__name__)
