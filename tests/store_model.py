"""What a store of licenses, charges and entries of the audit log promises, in plain Python without any database.

One dictionary for each kind of thing, sums where the store has counters, and nothing that runs at the same time.
`tests/store_machine.py` compares the store with it step by step.
"""

import copy
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import ceil

from keylock.licensing import Charge, License, Quota
from keylock.licensing.receipts import entry_of

LEEWAY = timedelta(seconds=30)
MONTHS = 12
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RefusedError(Exception):
    """What is expected in place of an answer: the kind of error and what it must say."""

    def __init__(self, *told: object) -> None:
        super().__init__(*told)
        self.told = told


@dataclass
class Grant:
    """A license and what was done to it; times in seconds since 1970."""

    terms: License
    revoked_at: int | None = None
    suspended_at: int | None = None
    cutoff: int | None = None
    unpaid: bool = False

    def closed(self) -> tuple[int | None, int | None, int | None]:
        return self.revoked_at, self.suspended_at, self.cutoff

    def status(self, now: datetime) -> str:
        if self.revoked_at is not None:
            return "revoked"
        if now >= self.terms.expires:
            return "expired"
        if self.suspended_at is not None:
            return "suspended"
        return "not yet valid" if now < self.terms.not_before else "active"


@dataclass
class Request:
    """A request that units are set aside for, or that is charged."""

    digest: str
    units: int
    overage: int
    at: datetime
    attempt: str
    expires_at: int
    charge: Charge | None = None
    disclosed: bool = False

    @property
    def explained(self) -> tuple[bool, ...] | None:
        """Which images were explained, of a request with a condition that is charged."""
        if self.charge is None or self.charge.explain_if is None:
            return None
        return tuple(one is not None for one in self.charge.answer.maps)

    def ends(self) -> tuple[int | None, int | None, str]:
        """When it may be taken back, or when it was charged and for which answer."""
        if self.charge is None:
            return self.expires_at, None, ""
        return None, seconds(self.charge.time), self.charge.answer.digest()


@dataclass(frozen=True)
class Presented:
    """What a caller sends: a license, or an access token for one (with an id)."""

    token: str
    license: License
    issued_at: datetime
    expires: datetime
    id: str | None = None


def seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def same_period(period: str, one: datetime, other: datetime) -> bool:
    if period == "day":
        return one.date() == other.date()
    return period == "total" or (one.year, one.month) == (other.year, other.month)


def resets_at(period: str, moment: datetime) -> datetime | None:
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return midnight + timedelta(days=1)
    if period == "month":
        year, month = divmod(moment.year * MONTHS + moment.month, MONTHS)
        return datetime(year, month + 1, 1, tzinfo=UTC)
    return None


@dataclass
class Model:
    """The whole store."""

    grants: dict[str, Grant] = field(default_factory=dict)
    revoked_tokens: dict[str, int] = field(default_factory=dict)
    requests: dict[tuple[str, str], Request] = field(default_factory=dict)
    log: list[bytes] = field(default_factory=list)
    # When each server that took no leave has looked last, in seconds.
    marks: dict[int, int] = field(default_factory=dict)
    # When the bucket of a license will be full, and when it was touched last, in microseconds.
    buckets: dict[str, tuple[Fraction, int]] = field(default_factory=dict)

    def copy(self) -> "Model":
        return copy.deepcopy(self)

    # What is done to licenses.

    def add(self, license: License) -> None:
        self.grants[license.id] = Grant(license)

    def renew(self, license: License) -> License:
        grant = self._grant(license.id)
        if grant.revoked_at is not None:
            raise RefusedError("license", "LICENSE_REVOKED")
        grant.terms = license
        return license

    def close(self, name: str, act: str, now: datetime, *, unpaid: bool = False) -> bool:
        grant = self._grant(name)
        if act == "revoke":
            grant.revoked_at = seconds(now) if grant.revoked_at is None else grant.revoked_at
        elif act == "suspend":
            grant.unpaid = unpaid if grant.suspended_at is None else grant.unpaid
            grant.suspended_at = seconds(now) if grant.suspended_at is None else grant.suspended_at
        else:
            grant.suspended_at, grant.unpaid = None, False
        return True

    def cut_off(self, name: str | None, cutoff: datetime) -> int:
        """Refuses what was issued earlier; returns how many licenses it concerns."""
        wanted = list(self.grants.values()) if name is None else [self._grant(name)]
        later = [grant for grant in wanted if grant.cutoff is None or grant.cutoff < seconds(cutoff)]
        for grant in later:
            grant.cutoff = seconds(cutoff)
        return len(later)

    def _grant(self, name: str) -> Grant:
        if name not in self.grants:
            raise RefusedError("license", "LICENSE_UNKNOWN")
        return self.grants[name]

    # What is asked.

    def windows(self, license: License, now: datetime) -> list[tuple[str, int | None, int, datetime | None]]:
        """Period, limit, use and end of each quota."""
        found = []
        for period in ("day", "month", "total"):
            used = sum(
                one.units
                for (owner, _), one in self.requests.items()
                if owner == license.id and same_period(period, one.at, now)
            )
            found.append((period, getattr(license.quota, period), used, resets_at(period, now)))
        return found

    def counters(self) -> dict[tuple[str, str, int], int]:
        """Units of each license by period and its number, where there are any."""
        found: Counter[tuple[str, str, int]] = Counter()
        for (owner, _), one in self.requests.items():
            month = (one.at.year - 1970) * MONTHS + one.at.month - 1
            for period, start in (("day", (one.at - EPOCH).days), ("month", month), ("total", 0)):
                found[owner, period, start] += one.units
        return {key: units for key, units in found.items() if units}

    def authenticate(self, shown: Presented, now: datetime, *, disclosing: bool = False) -> License:
        """The license that pays, or the reason why none does."""
        starts, ends = shown.license.not_before, shown.expires
        self._check_time(starts, ends, now)
        grant = self.grants.get(shown.license.id)
        if grant is None:
            raise RefusedError("license", "LICENSE_UNKNOWN")
        cut = grant.cutoff is not None and seconds(shown.issued_at) < grant.cutoff
        if grant.revoked_at is not None or shown.id in self.revoked_tokens or cut:
            raise RefusedError("license", "LICENSE_REVOKED")
        late = grant.suspended_at is not None and now.timestamp() >= grant.suspended_at + 86_400
        if grant.suspended_at is not None and not (disclosing and grant.unpaid and not late):
            raise RefusedError("license", "LICENSE_SUSPENDED")
        if grant.terms.issued_at == shown.license.issued_at and grant.terms != shown.license:
            raise RefusedError("service")
        self._check_time(grant.terms.not_before, grant.terms.expires, now)
        return grant.terms

    @staticmethod
    def _check_time(starts: datetime, ends: datetime, now: datetime) -> None:
        if now < starts - LEEWAY:
            raise RefusedError("license", "LICENSE_NOT_YET_VALID")
        if now >= ends + LEEWAY:
            raise RefusedError("license", "LICENSE_EXPIRED")

    # What is done to requests.

    def reserve(
        self, key: tuple[str, str], license: License, *, digest: str, units: int, images: int, attempt: str,
        now: datetime, lifetime_s: int, free_of_rate: bool = False,
    ) -> datetime | None:  # fmt: skip
        """Sets units aside; returns when the request was charged before."""
        if license.rate is not None and not free_of_rate:
            self._take(license, images, now)
        expires_at = ceil((now + timedelta(seconds=lifetime_s)).timestamp())
        known = self.requests.get(key)
        if known is None:
            overage = self._overage(license, units, now)
            self.requests[key] = Request(digest, units, overage, now, attempt, expires_at)
            return None
        if known.digest != digest:
            raise RefusedError("reused", key[1])
        if known.charge is None:
            known.attempt, known.expires_at = attempt, expires_at
            return None
        return known.charge.time

    def disclosures(self, name: str, now: datetime) -> tuple[int, int]:
        """How many were made or are under way, today and altogether."""
        found = [one for (owner, _), one in self.requests.items() if owner == name and one.disclosed]
        return sum(same_period("day", one.at, now) for one in found), len(found)

    def disclose(
        self, key: tuple[str, str], license: License, *, digest: str, attempt: str, now: datetime, lifetime_s: int
    ) -> datetime | None:
        """Counts a disclosure that is under way; returns when it was made before."""
        if key not in self.requests and license.disclosure is not None:
            today, total = self.disclosures(license.id, now)
            for period, used, limit in (
                ("total", total, license.disclosure.total),
                ("day", today, license.disclosure.per_day),
            ):
                if limit is not None and used >= limit:
                    raise RefusedError("disclosures", period, limit, used, resets_at(period, now))
        free = license.model_copy(update={"quota": Quota()})
        found = self.reserve(
            key, free, digest=digest, units=0, images=1, attempt=attempt, now=now, lifetime_s=lifetime_s,
            free_of_rate=True,
        )  # fmt: skip
        self.requests[key].disclosed = True
        return found

    def _overage(self, license: License, units: int, now: datetime) -> int:
        beyond = [
            (period, limit, used, units, end, used + units - limit)
            for period, limit, used, end in self.windows(license, now)
            if limit is not None and used + units > limit
        ]
        if beyond and not license.quota.overage:
            raise RefusedError("quota", *beyond[-1][:-1])
        return max([min(units, one[-1]) for one in beyond], default=0)

    def _take(self, license: License, images: int, now: datetime) -> None:
        rate, now_us = license.rate, int(now.timestamp() * 1_000_000)
        each = 1_000_000 / Fraction(rate.per_second)
        full, touched = self.buckets.get(license.id, (Fraction(now_us), now_us))
        set_back = touched > now_us + 5_000_000
        debt = max(Fraction(0), full - (touched if set_back else now_us))
        room = (rate.burst - min(images, rate.burst)) * each
        if debt > room:
            if set_back:
                self.buckets[license.id] = (now_us + full - touched, now_us)
            raise RefusedError("rate", float(max(Fraction(1, 1000), (debt - room) / 1_000_000)))
        self.buckets[license.id] = (now_us + debt + images * each, now_us)

    def commit(self, key: tuple[str, str], license: License, attempt: str, images: int, charge: Charge) -> "Settled":
        """Charges a request; its units are those that were set aside."""
        again = key not in self.requests
        if again and charge.disclosure is not None:
            self.disclose(key, license, digest=charge.request_digest, attempt=attempt, now=charge.time, lifetime_s=60)
        elif again:
            self.reserve(
                key, license, digest=charge.request_digest, units=charge.units, images=images, attempt=attempt,
                now=charge.time, lifetime_s=60, free_of_rate=True,
            )  # fmt: skip
        known = self.requests[key]
        if known.digest != charge.request_digest:
            raise RefusedError("reused", key[1])
        given_back = 0
        if known.charge is None and charge.explain_if is not None:
            # Each image costs the same.
            given_back = sum(known.units // images for one in charge.answer.maps if one is None)
            known.units, known.overage = known.units - given_back, max(0, known.overage - given_back)
        charge = replace(charge, units=known.units)
        if known.charge is None:
            known.charge, known.attempt = charge, attempt
            self.log.append(entry_of(charge))
            return Settled(charge, known.overage, repeated=False, looked_up=again, given_back=given_back)
        first = known.charge
        if known.explained not in (None, tuple(one is not None for one in charge.answer.maps)):
            raise RefusedError("rate", 0.1)
        if charge.answer != first.answer:
            charge = replace(charge, time=first.time, repeats=first.answer.digest())
            if entry_of(charge) not in self.log:
                self.log.append(entry_of(charge))
        else:
            charge = first
        return Settled(charge, known.overage, repeated=known.attempt != attempt, looked_up=True)

    def release(self, key: tuple[str, str], attempt: str) -> bool:
        known = self.requests.get(key)
        if known is None or known.charge is not None or known.attempt != attempt:
            return False
        del self.requests[key]
        return True

    def reap(self, now: datetime) -> int:
        gone = [
            key for key, one in self.requests.items() if one.charge is None and one.expires_at < int(now.timestamp())
        ]
        for key in gone:
            del self.requests[key]
        return len(gone)

    # What is done to the store.

    def mark(self, server: int, now: datetime) -> None:
        if server not in self.marks:
            self.marks = {one: at for one, at in self.marks.items() if at >= seconds(now) - 7 * 86_400}
        self.marks[server] = seconds(now)

    def in_use(self, now: datetime) -> bool:
        """Whether a server has looked lately; what looked long after now did so before the clock was set back."""
        return any(seconds(now) - 15 <= at <= seconds(now) + 60 for at in self.marks.values())

    def restored_from(self, backup: "Model") -> tuple["Model", dict[str, int]]:
        """The backup, in which all stays closed that was closed since and all terms are the latest; what that says."""
        new = backup.copy()
        renewed = 0
        for name, grant in new.grants.items():
            since = self.grants.get(name)
            if since is None:
                continue
            if since.terms.issued_at > grant.terms.issued_at:
                grant.terms, renewed = since.terms, renewed + 1
            grant.revoked_at = since.revoked_at if grant.revoked_at is None else grant.revoked_at
            if grant.suspended_at is None:
                grant.suspended_at, grant.unpaid = since.suspended_at, since.unpaid
            grant.cutoff = max((one for one in (grant.cutoff, since.cutoff) if one is not None), default=None)
        new.revoked_tokens = self.revoked_tokens | new.revoked_tokens
        lost = [
            one.units
            for key, one in self.requests.items()
            if one.charge and not (key in backup.requests and backup.requests[key].charge)
        ]
        told = {
            "closed": sum(grant.closed() != backup.grants[name].closed() for name, grant in new.grants.items()),
            "renewed": renewed,
            "tokens": len(self.revoked_tokens.keys() - backup.revoked_tokens.keys()),
            "lost_licenses": len(self.grants.keys() - backup.grants.keys()),
            "lost_charges": len(lost),
            "lost_units": sum(lost),
        }
        return new, told


@dataclass(frozen=True)
class Settled:
    """What became of a commit.

    Attributes:
        charge: What the receipt must say.
        overage: Units of it beyond the quota.
        repeated: Whether an earlier attempt was charged.
        looked_up: Whether the quotas it says are those of now, and not those of the reservation.
        given_back: Units that were set aside for images that were not explained, and are not charged.
    """

    charge: Charge
    overage: int
    repeated: bool
    looked_up: bool
    given_back: int = 0
