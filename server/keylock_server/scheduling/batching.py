"""Who is next: places for rows that are accepted, and a queue of those that wait. No clock, no thread, no model.

Rows are images of a request, or anything else that is worked on by the piece. Each job is the rows of one request,
which go through one graph, its family, and belong to one tenant: a license, or the unlicensed callers of one address.

1. A tenant gets places for its rows as long as it holds no more of them than are left free. Whoever comes first can
   thus never shut out the next one, and a thousand rows of one tenant leave room for the others.
2. Tenants take turns. The one whose turn it is chooses the family of a batch, by its oldest job; the batch is filled
   with rows of that family, one of each tenant after another. Those who were served go to the end of the line.
3. Whether a row is keyed is not known here, so that it makes no difference.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

__all__ = ["Job", "Part", "QueueQuota", "RowQueue", "ThroughputEstimate", "fair_shares"]

T = TypeVar("T")

_WEIGHT_OF_THE_LAST: Final = 0.2


class QueueQuota:
    """Counts the rows that are accepted and not answered yet.

    Attributes:
        limit: How many there may be.
        held: How many there are.
    """

    def __init__(self, limit: int) -> None:
        """Begins with none.

        Args:
            limit: How many rows there may be; at least 1.
        """
        self.limit, self.held = limit, 0
        self._by_tenant: dict[str, int] = {}

    def take(self, tenant: str, rows: int) -> bool:
        """Takes places for the rows of a request, all or none.

        Args:
            tenant: Whose they are.
            rows: How many.

        Returns:
            Whether there was room: a tenant may have no more than it leaves free.
        """
        has = self._by_tenant.get(tenant, 0)
        if has + rows > self.limit - self.held:
            return False
        self._by_tenant[tenant] = has + rows
        self.held += rows
        return True

    def give_back(self, tenant: str, rows: int) -> None:
        """Gives back what `take` took."""
        self.held -= rows
        self._by_tenant[tenant] -= rows
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]


@dataclass(eq=False, slots=True)
class Job(Generic[T]):
    """Rows that wait.

    Attributes:
        payload: What is to be done.
        rows: How many; at least 1.
        family: Which graph they go through; only rows of one family share a batch.
        tenant: Whose they are.
        arrived: When they came, in seconds of the clock of whoever asks the queue.
        deadline: When nobody wants them any more, by the same clock; None for never.
        begun: How many of the rows were handed out.
    """

    payload: T
    rows: int
    family: str
    tenant: str
    arrived: float = 0.0
    deadline: float | None = None
    begun: int = 0

    @property
    def waiting(self) -> int:
        """How many of the rows were not handed out yet."""
        return self.rows - self.begun


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """Consecutive rows of a job in a batch: those from `start` up to `stop`."""

    job: Job[T]
    start: int
    stop: int


class RowQueue(Generic[T]):
    """Rows that wait, handed out in batches.

    Attributes:
        waiting: How many rows wait.
    """

    def __init__(self) -> None:
        """Makes an empty queue."""
        self.waiting = 0
        # By tenant, in the order of their turns; each has at least one job with rows that wait, the oldest first.
        self._line: OrderedDict[str, list[Job[T]]] = OrderedDict()

    def add(self, job: Job[T]) -> None:
        """Lets a job wait."""
        self._line.setdefault(job.tenant, []).append(job)
        self.waiting += job.waiting

    def remove(self, job: Job[T]) -> None:
        """Drops the rows of a job that were not handed out; does nothing when there are none."""
        jobs = self._line.get(job.tenant, [])
        if job not in jobs:
            return
        jobs.remove(job)
        self.waiting -= job.waiting
        if not jobs:
            del self._line[job.tenant]

    def drop_expired(self, now: float) -> list[Job[T]]:
        """Drops the jobs whose deadline has come, and returns them."""
        expired = [job for job in self._jobs() if job.deadline is not None and job.deadline <= now]
        for job in expired:
            self.remove(job)
        return expired

    def clear(self) -> list[Job[T]]:
        """Drops every job, and returns them."""
        jobs = self._jobs()
        self._line.clear()
        self.waiting = 0
        return jobs

    def due(self, room: Callable[[str], int], *, delay_s: float) -> float:
        """Tells when the next batch should be taken; asked only while rows wait.

        Args:
            room: As of `take`.
            delay_s: How long rows may wait for others to share a batch with, in seconds.

        Returns:
            When the oldest row has waited long enough, or minus infinity for a batch that is full already.
        """
        jobs = self._jobs()
        family = self._next_family()
        if sum(job.waiting for job in jobs if job.family == family) >= room(family):
            return float("-inf")
        return min(job.arrived for job in jobs) + delay_s

    def take(self, room: Callable[[str], int]) -> list[Part[T]]:
        """Takes the next batch; asked only while rows wait.

        Args:
            room: Returns how many rows of a family a batch has room for, at least 1.

        Returns:
            Its parts, of one family.
        """
        family = self._next_family()
        tenants = list(self._line)
        lanes = [[job for job in self._line[tenant] if job.family == family] for tenant in tenants]
        shares = fair_shares([sum(job.waiting for job in lane) for lane in lanes], room(family))
        parts: list[Part[T]] = []
        for tenant, lane, share in zip(tenants, lanes, shares, strict=True):
            if share:
                parts += self._hand_out(lane, share)
                if tenant in self._line:
                    self._line.move_to_end(tenant)
        return parts

    def _jobs(self) -> list[Job[T]]:
        return [job for jobs in self._line.values() for job in jobs]

    def _next_family(self) -> str:
        return next(iter(self._line.values()))[0].family

    def _hand_out(self, lane: Sequence[Job[T]], share: int) -> list[Part[T]]:
        parts = []
        for job in lane:
            count = min(share, job.waiting)
            if not count:
                break
            parts.append(Part(job, job.begun, job.begun + count))
            share -= count
            if count == job.waiting:
                self.remove(job)
                job.begun = job.rows
            else:
                job.begun += count
                self.waiting -= count
        return parts


class ThroughputEstimate:
    """Learns how long rows take, from the runs there were."""

    def __init__(self) -> None:
        """Begins with no idea."""
        self._row_s: dict[str, float] = {}
        self._mean_row_s: float | None = None

    def note(self, family: str, *, rows: int, seconds: float) -> None:
        """Takes a run into account."""
        row_s = seconds / rows
        self._row_s[family] = _blend(self._row_s.get(family), row_s)
        self._mean_row_s = _blend(self._mean_row_s, row_s)

    def rows_within(self, seconds: float, family: str) -> int:
        """Estimates how many rows of a family run within a time; 1 at least, and as long as none has run."""
        row_s = self._row_s.get(family)
        if row_s is None:
            return 1
        return max(1, int(seconds / max(row_s, 1e-9)))

    def seconds_for(self, rows: int) -> float:
        """Estimates how long rows of whatever has run lately take one after another; 0 as long as none has."""
        return rows * (self._mean_row_s or 0.0)


def _blend(before: float | None, now: float) -> float:
    return now if before is None else before + _WEIGHT_OF_THE_LAST * (now - before)


def fair_shares(wanted: Sequence[int], room: int) -> list[int]:
    """Divides room among those who want some: one to each in turn, until nobody wants more or nothing is left.

    Args:
        wanted: How much each wants.
        room: How much there is.

    Returns:
        How much each gets.
    """
    shares = [0] * len(wanted)
    hungry = [i for i, want in enumerate(wanted) if want > 0]
    while room > 0 and hungry:
        each = max(1, min(room // len(hungry), min(wanted[i] - shares[i] for i in hungry)))
        for i in hungry[:room]:
            shares[i] += each
            room -= each
        hungry = [i for i in hungry if shares[i] < wanted[i]]
    return shares
