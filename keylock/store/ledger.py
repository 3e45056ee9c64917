"""What each license used: reserve before the work, charge after it, release where it failed.

Exact under concurrency, retries and crashes, for these reasons. Units are compared with the quota and counted by one
statement (`keylock.store.counters`). A request is a row of the ledger under (license, request id), which is unique, and
only a change of that row from reserved to charged is a charge. Row and counters change in one transaction. A
reservation whose server died expires and is taken back by whoever comes next.

Of a request with a condition units are set aside for all images, and those that were not explained are given back by
the transaction that charges the others, which notes the images as well: a repeat is answered for the same ones.

Charges wait for the disk, reservations and releases do not: what a power cut takes of them was answered to nobody, and
no charge goes with it, because whatever is committed reaches the disk after what was committed before.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Final, NamedTuple, TypeAlias

from sqlalchemy import Connection

from keylock.errors import DisclosuresSpentError, QuotaError, RateError, RequestReusedError
from keylock.licensing import Charge, License, Quota
from keylock.licensing.receipts import entry_of
from keylock.store.counters import Window, add_units, look_up, overage_of, subtract_units
from keylock.store.database import Database
from keylock.store.group_commit import GroupCommit
from keylock.store.periods import day_of, month_of, resets_at
from keylock.store.rates import take
from keylock.store.raw_sql import Statement

__all__ = ["ChargeRequest", "ChargeResult", "Ledger", "Recorder", "Reservation", "Standing", "disclosures"]

Recorder: TypeAlias = Callable[[Connection, Charge, bytes], None]
"""Records a charge, given with its entry, elsewhere in the store, inside the transaction that makes it.

It may be called again with an equal charge that `repeats` another answer, and records that once.
"""

_ATTEMPTS: Final = 5
_CONTENDED_S: Final = 0.1
_MOMENT: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeRequest:
    """What is asked for, and what it will cost.

    Attributes:
        license: The license that pays, as the store has it.
        request_id: Names the request within the license.
        request_digest: Digest of all that is asked for, but its id.
        model_digest: Digest of the model.
        explainer: Name of the saliency method.
        images: How many.
        units: What they cost together, unless units are set aside for the request already.
        attempt: Names whoever works on it, so that nobody else releases it.
        disclosure: Why it is a disclosure; None where it is none. A disclosure costs no units, is bounded by the terms
            of the license for it and by neither quota nor rate, and is counted by its rows.
    """

    license: License
    request_id: str
    request_digest: str
    model_digest: str
    explainer: str
    images: int
    units: int
    attempt: str
    disclosure: str | None = None

    @property
    def payer(self) -> License:
        """The license with the limits that hold for this: none of units and images for a disclosure."""
        if self.disclosure is None:
            return self.license
        return self.license.model_copy(update={"quota": Quota(), "rate": None})


@dataclass(frozen=True, slots=True)
class Reservation:
    """Units that are set aside for a request.

    Attributes:
        order: What was asked for.
        expires_at: From when they may be taken back.
        windows: The quotas, the reservation included.
        charged_at: When the request was charged before; None where it was not.
        explained: Which of its images were explained then, where the request has a condition: the same are again.
    """

    order: ChargeRequest
    expires_at: datetime
    windows: tuple[Window, ...]
    charged_at: datetime | None
    explained: tuple[bool, ...] | None = None


@dataclass(frozen=True, slots=True)
class ChargeResult:
    """What became of a request.

    Attributes:
        charge: The charge of this answer as the audit log has it: its time is when the request was charged, and its
            units are those that were set aside, whatever its price is by now.
        entry: The same as its receipt must say it; see `keylock.licensing.receipts.entry_of`.
        overage: Units of it that were beyond the quota.
        repeated: Whether it was charged before, so that it costs nothing now.
        windows: The quotas, the request included.
    """

    charge: Charge
    entry: bytes
    overage: int
    repeated: bool
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a request stands.

    Attributes:
        images: How many it has.
        units: What is set aside for it, or charged.
        charged: Which of the two.
        explained: Which of its images were explained, where it has a condition and is charged.
    """

    images: int
    units: int
    charged: bool
    explained: tuple[bool, ...] | None


class Ledger:
    """Counts what licenses use. Its methods may be called from several threads and processes."""

    def __init__(self, database: Database, *, record: Recorder | None = None) -> None:
        """Makes a ledger on a store.

        Args:
            database: The store, which stays open when the ledger is closed.
            record: Called for every charge, inside its transaction.
        """
        self._database = database
        self._record = record
        self._commits = GroupCommit(database)

    def reserve(self, order: ChargeRequest, *, now: datetime, lifetime_s: float) -> "Future[Reservation]":
        """Sets units aside for a request; one that was charged before needs none.

        A request that somebody else works on is taken over: both may finish, and only the first is charged.

        Args:
            order: What is asked for.
            now: The time, with its zone.
            lifetime_s: After how many seconds the units may be taken back.

        Returns:
            The reservation, once it is committed, though not on disk. It raises `QuotaError`, `RateError` or
            `RequestReusedError` where the request does not fit, and `StoreError` where the store cannot be used.
        """
        expires_at = now + timedelta(seconds=lifetime_s)
        return self._commits.submit(
            lambda connection: self._reserve(connection, order, now, expires_at), order=order.license.id, lasting=False
        )

    def commit(self, reservation: Reservation, charge: Charge) -> "Future[ChargeResult]":
        """Charges a request; where it was charged before with another answer, records that this one was given too.

        Args:
            reservation: What was set aside.
            charge: What to record; its time is when the request is charged, if it is charged by this.

        Returns:
            What became of it, once it is on disk. Where the reservation was taken back in the meantime the units are
            set aside anew, and it raises `QuotaError` where they are gone.
        """
        return self._commits.submit(
            lambda connection: self._commit(connection, reservation, charge),
            order=reservation.order.license.id,
        )

    def release(self, order: ChargeRequest) -> "Future[bool]":
        """Gives back what was set aside for a request, unless somebody else works on it or it was charged.

        Returns:
            Whether something was given back.
        """
        return self._commits.submit(
            lambda connection: self._release(connection, order), order=order.license.id, lasting=False
        )

    def reap(self, *, now: datetime) -> "Future[int]":
        """Takes back reservations that have expired, some hundreds at most.

        Returns:
            How many were taken back.
        """
        # After every license: its rows are locked last, and in the order of their names.
        return self._commits.submit(lambda connection: self._reap(connection, now), order="\U0010ffff", lasting=False)

    def windows(self, license: License, *, now: datetime) -> tuple[Window, ...]:
        """Looks up what a license has used, as `look_up`.

        Raises:
            StoreError: If the store cannot be used.
        """
        with self._database.transaction() as connection:
            return look_up(connection, license, now)

    def disclosures(self, license_id: str, *, now: datetime) -> tuple[int, int]:
        """Looks up how many disclosures of a license there are, as `disclosures`.

        Raises:
            StoreError: If the store cannot be used.
        """
        with self._database.transaction() as connection:
            return disclosures(connection, license_id, now=now)

    def standings(self, license_id: str, *, prefix: str) -> dict[str, Standing]:
        """Looks up those requests of a license whose ids begin with a text, and how each stands.

        Args:
            license_id: The license.
            prefix: The text, of letters of one case, digits and dashes.

        Raises:
            StoreError: If the store cannot be used.
        """
        values = {"license": license_id, "pattern": f"{prefix}%"}
        with self._database.transaction() as connection:
            return {
                request_id: Standing(images, units, charged_at is not None, _read_mask(explained))
                for request_id, images, units, charged_at, explained in _STANDINGS.rows(connection, values)
            }

    def problem(self) -> str | None:
        """Returns what keeps reservations and charges from being written, for the operator; None where nothing does."""
        return self._commits.problem()

    def close(self) -> None:
        """Finishes what was handed over."""
        self._commits.close()

    def _reserve(
        self, connection: Connection, order: ChargeRequest, now: datetime, expires_at: datetime
    ) -> Reservation:
        take(connection, order.payer, images=order.images, now=now)
        values = {
            **_values(order),
            "model_digest": order.model_digest,
            "explainer": order.explainer,
            "images": order.images,
            "units": order.units,
            "day": day_of(now),
            "month": month_of(now),
            "expires_at": ceil(expires_at.timestamp()),
            "disclosure": order.disclosure,
        }
        # Again, because another server may change the row that is in the way between two statements.
        for _ in range(_ATTEMPTS):
            if _RESERVE.row(connection, values) is not None:
                return Reservation(order, expires_at, self._add(connection, order, now), None)
            row = _find(connection, order)
            if row is None:
                continue
            if row.request_digest != order.request_digest:
                raise RequestReusedError(order.request_id)
            if row.charged_at is None and not _TAKE_OVER.change(connection, values):
                continue
            charged_at = None if row.charged_at is None else datetime.fromtimestamp(row.charged_at, UTC)
            windows = look_up(connection, order.payer, now)
            return Reservation(order, expires_at, windows, charged_at, _read_mask(row.explained))
        raise RateError(license_id=order.license.id, retry_after_s=_CONTENDED_S)

    @staticmethod
    def _add(connection: Connection, order: ChargeRequest, now: datetime) -> tuple[Window, ...]:
        """Counts the units of a new row, or takes the row back and refuses."""
        try:
            # For a disclosure, which adds none, this keeps others of the license from being counted meanwhile.
            windows = add_units(connection, order.payer, order.units, now=now)
            _check_disclosures(connection, order, now)
        except QuotaError:
            _FORGET.change(connection, _values(order))
            raise
        overage = overage_of(windows, order.units)
        if overage:
            _NOTE_OVERAGE.change(connection, {**_values(order), "overage": overage})
        return windows

    def _commit(self, connection: Connection, reservation: Reservation, charge: Charge) -> ChargeResult:
        order, windows = reservation.order, reservation.windows
        answered = {"now": int(charge.time.timestamp()), "answer_digest": charge.answer.digest()}
        for _ in range(_ATTEMPTS):
            charged = _CHARGE.row(connection, _values(order) | answered)
            if charged is not None:
                units, overage, day, month = charged
                if charge.explain_if is not None:
                    given_back = units // order.images * charge.answer.explained.count(False)
                    units, overage = units - given_back, max(0, overage - given_back)
                    self._settle(connection, order, charge, units, overage)
                    subtract_units(connection, order.license.id, given_back, day=day, month=month)
                    windows = tuple(replace(one, used=one.used - given_back) for one in windows)
                made = charge if units == charge.units else replace(charge, units=units)
                result = ChargeResult(made, entry_of(made), overage, False, windows)
                if self._record is not None:
                    self._record(connection, made, result.entry)
                return result
            found = _find(connection, order)
            if found is None:
                # The reservation was taken back, because it had expired or a twin of the request gave up. Its images
                # have passed the rate already.
                unlimited = replace(order, license=order.license.model_copy(update={"rate": None}))
                windows = self._reserve(connection, unlimited, charge.time, charge.time + _MOMENT).windows
            elif found.charged_at is not None or found.request_digest != order.request_digest:
                return self._repeat(connection, order, found, charge)
            # What is there otherwise was set aside by another server since the first statement; it can be charged.
        raise RateError(license_id=order.license.id, retry_after_s=_CONTENDED_S)

    @staticmethod
    def _settle(connection: Connection, order: ChargeRequest, charge: Charge, units: int, overage: int) -> None:
        """Notes what is charged of what was set aside, and for which images."""
        mask = _write_mask(charge.answer.explained)
        _SETTLE.change(connection, {**_values(order), "units": units, "overage": overage, "explained": mask})

    def _repeat(self, connection: Connection, order: ChargeRequest, row: "_Found", charge: Charge) -> ChargeResult:
        if row.charged_at is None or row.request_digest != order.request_digest:
            # The id was released and then used for another request while this one was computed.
            raise RequestReusedError(order.request_id)
        if row.explained is not None and row.explained != _write_mask(charge.answer.explained):
            # Two calls for one request at once, of which one found a prediction on the other side of the condition.
            # Asked again, the images that were charged are the ones that are explained.
            raise RateError(license_id=order.license.id, retry_after_s=_CONTENDED_S)
        repeats = None if row.answer_digest == charge.answer.digest() else row.answer_digest
        made = replace(charge, time=datetime.fromtimestamp(row.charged_at, UTC), units=row.units, repeats=repeats)
        result = ChargeResult(
            charge=made,
            entry=entry_of(made),
            overage=row.overage,
            # A commit that is run again, because nobody knows whether it went through, is not a repeat.
            repeated=row.attempt != order.attempt,
            windows=look_up(connection, order.payer, charge.time),
        )
        if self._record is not None and repeats is not None:
            self._record(connection, made, result.entry)
        return result

    @staticmethod
    def _release(connection: Connection, order: ChargeRequest) -> bool:
        return _give_back(connection, _RELEASE, _values(order))

    @staticmethod
    def _reap(connection: Connection, now: datetime) -> int:
        seconds = int(now.timestamp())
        return sum(
            _give_back(connection, _REAP, {"license": license_id, "request": request_id, "now": seconds})
            for license_id, request_id in _EXPIRED.rows(connection, {"now": seconds})
        )


def disclosures(connection: Connection, license_id: str, *, now: datetime) -> tuple[int, int]:
    """Returns how many disclosures of a license were made, or are under way, today (UTC) and altogether."""
    found = _DISCLOSURES.row(connection, {"license": license_id, "day": day_of(now)})
    return (0, 0) if found is None else (int(found[0]), int(found[1]))


def _check_disclosures(connection: Connection, order: ChargeRequest, now: datetime) -> None:
    """Returns when a disclosure, whose row is there already, is within the terms of its license.

    Raises:
        DisclosuresSpentError: If it is one too many.
    """
    terms = order.license.disclosure
    if order.disclosure is None:
        return
    today, total = disclosures(connection, order.license.id, now=now)
    for period, used, limit in (
        ("total", total, 0 if terms is None else terms.total),
        ("day", today, 0 if terms is None else terms.per_day),
    ):
        if limit is not None and used > limit:
            raise DisclosuresSpentError(
                license_id=order.license.id, period=period, limit=limit, used=used - 1, units=1,
                resets_at=resets_at(period, now),
            )  # fmt: skip


class _Found(NamedTuple):
    request_digest: str
    units: int
    overage: int
    attempt: str
    charged_at: int | None
    answer_digest: str
    explained: str | None


def _write_mask(explained: tuple[bool, ...]) -> str:
    return "".join("1" if one else "0" for one in explained)


def _read_mask(text: str | None) -> tuple[bool, ...] | None:
    return None if text is None else tuple(one == "1" for one in text)


def _find(connection: Connection, order: ChargeRequest) -> _Found | None:
    found = _FIND.row(connection, _values(order))
    return None if found is None else _Found(*found)


def _values(order: ChargeRequest) -> dict[str, object]:
    return {
        "license": order.license.id,
        "request": order.request_id,
        "request_digest": order.request_digest,
        "attempt": order.attempt,
    }


def _give_back(connection: Connection, delete: Statement, values: Mapping[str, object]) -> bool:
    deleted = delete.row(connection, values)
    if deleted is not None:
        license_id, units, day, month = deleted
        subtract_units(connection, license_id, units, day=day, month=month)
    return deleted is not None


# They are written out, because they are the same on both databases and each of them carries a promise.
_OWN: Final = "license_id = :license AND request_id = :request"
_COUNTED: Final = "RETURNING license_id, units, day, month"

_RESERVE: Final = Statement(
    """
    INSERT INTO ledger (license_id, request_id, request_digest, model_digest, explainer, images, units, overage,
                        day, month, attempt, expires_at, answer_digest, disclosure)
    VALUES (:license, :request, :request_digest, :model_digest, :explainer, :images, :units, 0,
            :day, :month, :attempt, :expires_at, '', :disclosure)
    ON CONFLICT (license_id, request_id) DO NOTHING
    RETURNING request_id
    """
)
_DISCLOSURES: Final = Statement(
    """
    SELECT coalesce(sum(CASE WHEN day = :day THEN 1 ELSE 0 END), 0), count(*)
    FROM ledger WHERE license_id = :license AND disclosure IS NOT NULL
    """
)
_STANDINGS: Final = Statement(
    """
    SELECT request_id, images, units, charged_at, explained
    FROM ledger WHERE license_id = :license AND request_id LIKE :pattern
    """
)
_FIND: Final = Statement(f"SELECT {', '.join(_Found._fields)} FROM ledger WHERE {_OWN}")  # noqa: S608 - constants
_TAKE_OVER: Final = Statement(
    f"UPDATE ledger SET attempt = :attempt, expires_at = :expires_at WHERE {_OWN} AND charged_at IS NULL"  # noqa: S608
)
_FORGET: Final = Statement(f"DELETE FROM ledger WHERE {_OWN} AND charged_at IS NULL")  # noqa: S608
_NOTE_OVERAGE: Final = Statement(f"UPDATE ledger SET overage = :overage WHERE {_OWN}")  # noqa: S608
# The one change that is a charge: a row passes from reserved to charged once.
_CHARGE: Final = Statement(
    f"""
    UPDATE ledger SET charged_at = :now, expires_at = NULL, attempt = :attempt, answer_digest = :answer_digest
    WHERE {_OWN} AND charged_at IS NULL AND request_digest = :request_digest
    RETURNING units, overage, day, month
    """  # noqa: S608
)
_SETTLE: Final = Statement(
    f"UPDATE ledger SET units = :units, overage = :overage, explained = :explained WHERE {_OWN}"  # noqa: S608
)
_RELEASE: Final = Statement(
    f"DELETE FROM ledger WHERE {_OWN} AND charged_at IS NULL AND attempt = :attempt {_COUNTED}"  # noqa: S608
)
_EXPIRED: Final = Statement(
    "SELECT license_id, request_id FROM ledger WHERE expires_at < :now ORDER BY license_id, request_id LIMIT 200"
)
_REAP: Final = Statement(
    f"DELETE FROM ledger WHERE {_OWN} AND charged_at IS NULL AND expires_at < :now {_COUNTED}"  # noqa: S608
)
