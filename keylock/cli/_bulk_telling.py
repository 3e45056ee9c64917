"""What `keylock explain-many` tells: at its beginning how far it will get, at its end what it did and charged."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from keylock.cli._console import note, print_json, print_pairs
from keylock.cli._stage import format_seconds

if TYPE_CHECKING:
    from keylock.bulk import Budget, Job, Outcome
    from keylock.bulk.charging import Cashier
    from keylock.bulk.plan import PlacedBlock

__all__ = ["report", "tell_beginning"]

_SHOWN_FAILURES: Final = 5


def tell_beginning(job: "Job", cashier: "Cashier | None", budget: "Budget") -> None:
    """Note what is finished already, and where the job will have to stop.

    Args:
        job: The job.
        cashier: Who charges; None where nothing is charged.
        budget: How much the job may cost.
    """
    left = job.left()
    if job.resumed:
        note(f"going on in {job.folder}: {len(job.blocks) - len(left)} of {len(job.blocks)} blocks are finished")
    if cashier is None or not left:
        return
    if not cashier.signs_receipts:
        note("note: no receipts are signed: --receipt-key names a key for them")
    if cashier.earlier and budget.max_units is not None:
        note(f"{cashier.earlier:,} units were charged for this job by earlier runs")
    if job.asked.explain_if is None:
        _tell_how_far(left, cashier.left(), budget)
    else:
        _tell_how_many(left, cashier.left(), budget)


def _tell_how_far(left: "Sequence[PlacedBlock]", licensed: int | None, budget: "Budget") -> None:
    images, fitting = sum(block.count for block in left), budget.fitting(left)
    if licensed is not None and licensed < images:
        note(f"note: the license pays for {licensed:,} of {images:,} images at the moment; the job stops there")
    if fitting and len(fitting) < len(left):
        allowed = sum(block.count for block in fitting)
        note(f"note: --max-units allows {allowed:,} of {images:,} images, in whole blocks; the job stops there")


def _tell_how_many(left: "Sequence[PlacedBlock]", licensed: int | None, budget: "Budget") -> None:
    """Note the same of a job with a condition, of which nobody knows yet how many images will be explained."""
    images, largest = sum(block.count for block in left), max(block.count for block in left)
    for payer, affords in (("the license pays for", licensed), ("--max-units allows", budget.affords())):
        if affords is not None and 0 < affords < images:
            note(
                f"note: {payer} {affords:,} maps, and {images:,} images are to be looked at; the job stops where more "
                "of them meet the condition"
            )
    if licensed is not None and licensed < largest:
        note(
            f"note: while a block is charged, units are set aside for all of its images, up to {largest:,}, which the "
            "license does not have; a job in another folder with a smaller --block-size goes further"
        )


def report(
    job: "Job",
    outcome: "Outcome",
    *,
    cashier: "Cashier | None",
    budget: "Budget",
    seconds: float,
    as_json: bool,
) -> None:
    """Print what a run did and how far the job is, and write the list of images that could not be decoded.

    Args:
        job: The job.
        outcome: Of this run.
        cashier: Who charged; None where nothing was charged.
        budget: How much the job may cost.
        seconds: How long the run took.
        as_json: Whether as a JSON document.
    """
    failed = job.failed_images()
    finished = [block for block in job.blocks if job.result(block.number).is_file()]
    images, has_condition = sum(block.count for block in finished), job.asked.explain_if is not None
    explained = job.explained() if has_condition else images - len(failed)
    skipped = images - len(failed) - explained
    if as_json:
        print_json(
            {
                "out": job.folder,
                "job": job.id,
                "blocks": len(job.blocks),
                "finished": len(finished),
                "images": images,
                "explained": explained,
                "skipped": skipped,
                "not_explained": len(failed),
                "units": None if cashier is None else cashier.earlier + cashier.units,
                "this_run": {
                    "blocks": outcome.blocks,
                    "images": outcome.images,
                    "explained": outcome.explained,
                    "units": None if cashier is None else cashier.units,
                    "workers": outcome.workers,
                    "worker_cpu_s": round(outcome.cpu_s, 3),
                    "seconds": round(seconds, 3),
                    "blocks_that_failed": [{"block": number, "why": why} for number, why in outcome.failures],
                },
                "explain_if": job.asked.explain_if,
                "max_units": budget.max_units,
                "license": job.asked.license,
                "receipts": cashier is not None and cashier.signs_receipts,
            }
        )
        return
    for one in failed[:_SHOWN_FAILURES]:
        note(f"{one['path']}: {one['error']}")
    if failed:
        more = f" and {len(failed) - _SHOWN_FAILURES} others" if len(failed) > _SHOWN_FAILURES else ""
        note(f"images that were not explained{more}: {job.folder / 'failed-images.jsonl'}")
    rate = outcome.images / seconds if seconds else 0.0
    reached = f"{explained:,} explained, {len(failed):,} not"
    if has_condition:
        reached = f"{explained:,} explained, {skipped:,} that do not meet the condition, {len(failed):,} unreadable"
    print_pairs(
        [
            ("results", job.folder / "blocks"),
            ("blocks", f"{len(finished):,} of {len(job.blocks):,}, {outcome.blocks:,} in this run"),
            ("images", reached),
            ("charged", "nothing" if cashier is None else _charged(cashier)),
            (
                "time",
                f"{format_seconds(seconds)}, {rate:.1f} images in a second" if outcome.images else "nothing to do",
            ),
        ]
    )


def _charged(cashier: "Cashier") -> str:
    told = f"{cashier.units:,} units to {cashier.license.id} in this run"
    return f"{told}, {cashier.earlier + cashier.units:,} in all" if cashier.earlier else told
