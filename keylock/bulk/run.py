"""Running a job: blocks go out to workers of Ray, and what comes back is charged and put where results are.

Ray may run a block twice, in whole or in part, because it runs again what a dead worker had. Nothing that a worker does
can be seen outside of the folder of unfinished files, whose names are never used twice; and each block passes through
here once.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from keylock import __version__, errors
from keylock.bulk import cluster
from keylock.bulk.budget import Budget
from keylock.bulk.charging import Cashier
from keylock.bulk.ending import interrupted_once, no_thread_left, undisturbed_end
from keylock.bulk.handover import handed_over
from keylock.bulk.job import Job
from keylock.bulk.plan import PlacedBlock
from keylock.bulk.worker import BlockResult, Worker, WorkerOrder
from keylock.errors import InputError, KeylockError, RequestReusedError, ServiceError
from keylock.files.limits import available_cores
from keylock_client.errors import SpendingLimitError

__all__ = ["Outcome", "Workers", "run_job"]

_IN_FLIGHT: Final = 2


class Progress(Protocol):
    """Hears how far a job is."""

    def __call__(self, *, blocks: int, images: int) -> None:
        """So many blocks with so many images are finished in this run."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """What works.

    Attributes:
        count: How many workers; None for as many as there are cores.
        threads: Cores of each.
        gpu: Whether each takes a GPU.
        address: Of a cluster; None for this machine.
    """

    count: int | None = None
    threads: int = 1
    gpu: bool = False
    address: str | None = None


@dataclass(kw_only=True)
class Outcome:
    """What a run did.

    Attributes:
        blocks: Blocks that it finished.
        images: Their images.
        explained: Those of them that were explained.
        cpu_s: Processor time of the workers for them, in seconds.
        workers: How many workers there were.
        failures: Of blocks that could not be explained: the number, and why not.
        limit: Why blocks were left out that would have cost too much; None where none was.
    """

    blocks: int = 0
    images: int = 0
    explained: int = 0
    cpu_s: float = 0.0
    workers: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)
    limit: SpendingLimitError | None = None


def run_job(
    job: Job,
    order: WorkerOrder,
    *,
    workers: Workers,
    cashier: Cashier | None,
    secrets: dict[str, str],
    budget: Budget,
    on_begin: Callable[[], None] = lambda: None,
    on_start: Callable[[int], None] = lambda _workers: None,
    on_block: Progress = lambda *, blocks, images: None,
) -> Outcome:
    """Explains what is left of a job.

    Args:
        job: In a folder that this process holds.
        order: What workers are told.
        workers: What works.
        cashier: Charges; None where nothing is charged.
        secrets: Of variables, by their names, for workers on this machine.
        budget: How much it may cost. Where that is spent, `Outcome.limit` says so; the rest is for another run.
        on_begin: Told when Ray is about to be started or asked, which takes some seconds.
        on_start: Told how many workers there are, once Ray runs.
        on_block: Told after each block.

    Returns:
        What was done, and which blocks were not.

    Raises:
        ServiceError: If Ray does not run, or its workers cannot.
        KeylockError: If a worker cannot open bundle or key, the license is not good any more or its quota is spent,
            the store cannot be used, or results cannot be written. What is finished by then stays finished.
    """
    left = job.left()
    outcome = Outcome()
    if not left:
        return outcome
    try:
        chosen = budget.choose(left)
        job.prepare()
        with interrupted_once(), ExitStack() as stack:
            stack.enter_context(undisturbed_end(job.clear))
            on_begin()
            order, outcome.workers = _begin(stack, workers, order, secrets, most=len(chosen))
            on_start(outcome.workers)
            while chosen:
                # Whatever ends this run, blocks stop before Ray does.
                with closing(_results(_rows(job, chosen, cashier), order, workers, count=outcome.workers)) as results:
                    for result in results:
                        budget.check(result)
                        _settle(job, result, cashier, outcome)
                        on_block(blocks=outcome.blocks, images=outcome.images)
                done = {block.number for block in chosen}
                left = [block for block in left if block.number not in done]
                # Where images could not be decoded, there is room for more than was foreseen.
                chosen = budget.choose(left)
    except SpendingLimitError as error:
        outcome.limit = error
    return outcome


def _begin(
    stack: ExitStack, workers: Workers, order: WorkerOrder, secrets: dict[str, str], *, most: int
) -> tuple[WorkerOrder, int]:
    """Starts Ray, or joins a cluster; returns what workers are told and how many there are to be."""
    if workers.address is None:
        cores = max(1, available_cores() // workers.threads)
        count = min(workers.count or cores, most)
        # One core more, for what Ray runs beside them.
        folder = stack.enter_context(
            cluster.started(cores=count * workers.threads + 1, gpus=count if workers.gpu else 0)
        )
        place: Path | None = stack.enter_context(handed_over(secrets, folder))
        return replace(order, variables=None if place is None else str(place)), count
    cores, gpus = stack.enter_context(cluster.connected(workers.address))
    there = cores // workers.threads if not workers.gpu else min(cores // workers.threads, gpus)
    wanted = workers.count or there
    if wanted > there or not there:
        what = f"{cores} cores and {gpus} GPUs" if workers.gpu else f"{cores} cores"
        raise InputError(
            f"the cluster has {what}, which is not enough for {max(1, wanted)} workers: give workers={there}"
            if there
            else f"the cluster has {what}, which is not enough for a worker"
        )
    return order, min(wanted, most)


class _Actor:
    """A worker as Ray calls it, with one block at a time."""

    def __init__(self, order: WorkerOrder, version: str) -> None:
        # Whatever goes wrong is said in answers: Ray would start an actor that fails again and again.
        self._worker = Worker(order) if version == __version__ else None
        self._version = version

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        number, count, offset = (int(rows[name][0]) for name in ("number", "count", "offset"))
        before = tuple(one == "1" for one in str(rows["before"][0])) or None
        if self._worker is None:
            told = f"a worker has keylock {__version__}, and the process that started it {self._version}: install one"
            result = BlockResult(number=number, images=count, error=("ServiceError", told), fatal=True)
        else:
            result = self._worker.explain(number, count, offset, before)
        return {"result": np.array([result.to_text()], object)}


def _rows(job: Job, blocks: Iterable[PlacedBlock], cashier: Cashier | None) -> list[dict[str, Any]]:
    """Returns what travels to a worker of each block."""
    rows = []
    for one in blocks:
        before = None if cashier is None else cashier.explained_before(job, one.number)
        told = "".join("1" if explained else "0" for explained in before or ())
        rows.append({"number": one.number, "count": one.count, "offset": one.offset, "before": told})
    return rows


def _results(rows: list[dict[str, Any]], order: WorkerOrder, workers: Workers, *, count: int) -> Generator[BlockResult]:
    """Yields what becomes of blocks, as they are done. It is closed before Ray is shut down."""
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # As many blocks of Ray as there are of ours, because Ray runs again what is in one of its own.
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(order, __version__),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=_IN_FLIGHT),
        num_cpus=workers.threads,
        num_gpus=1 if workers.gpu else 0,
    )
    try:
        # One that is fetched ahead would be charged only when the next is done as well.
        batches = iter(done.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0))
        with no_thread_left(), undisturbed_end(batches.close):
            for rows_done in batches:
                for text in rows_done["result"]:
                    yield BlockResult.of_text(str(text))
    except ray.exceptions.RayError as error:
        raise ServiceError(
            f"Ray gave up ({type(error).__name__}): is keylock with the extra ray installed on every machine, and was "
            "the cluster stopped? Run the same command again to go on"
        ) from error


def _settle(job: Job, result: BlockResult, cashier: Cashier | None, outcome: Outcome) -> None:
    """Charges a block and keeps its result, or notes why there is none."""
    if result.error is not None:
        if result.fatal:
            raise _error_of(*result.error)
        outcome.failures.append((result.number, result.error[1]))
        return
    receipt = None
    if cashier is not None and result.image_digests:
        try:
            receipt = cashier.charge(job, result)
        except RequestReusedError:
            told = "other images were charged for it, so they were changed since: explain them in a job of its own"
            outcome.failures.append((result.number, told))
            return
    job.keep(result.number, result.written, receipt)
    outcome.blocks += 1
    outcome.images += result.images
    outcome.explained += result.explained
    outcome.cpu_s += result.cpu_s


def _error_of(kind: str, message: str) -> KeylockError:
    """Returns an error that a worker has told of."""
    found = getattr(errors, kind, KeylockError)
    error: KeylockError = found.__new__(found)
    KeylockError.__init__(error, message)
    return error
