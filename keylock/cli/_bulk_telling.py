"""What `keylock explain-many` tells: at its beginning how far it will get, at its end what it did and charged."""

from typing import TYPE_CHECKING, Final

from keylock.cli._console import note, print_json, print_pairs
from keylock.cli._stage import format_seconds

if TYPE_CHECKING:
    from keylock.bulk import Budget, Job, Outcome
    from keylock.bulk.charging import Cashier

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
    images = sum(block.count for block in left)
    if job.resumed:
        note(f"going on in {job.folder}: {len(job.blocks) - len(left)} of {len(job.blocks)} blocks are finished")
    if cashier is None or not left:
        return
    if not cashier.signs_receipts:
        note("note: no receipts are signed: --receipt-key names a key for them")
    if cashier.earlier and budget.max_units is not None:
        note(f"{cashier.earlier:,} of {budget.max_units:,} units were charged for this job by earlier runs")
    has_condition, licensed = job.asked.explain_if is not None, cashier.left()
    for payer, affords in (("the license pays for", licensed), ("--max-units allows", budget.affords())):
        if affords is None or affords >= images:
            continue
        if has_condition:
            note(
                f"note: {payer} {affords:,} maps at the moment; the job stops where more of {images:,} images need one"
            )
        else:
            note(f"note: {payer} {affords:,} of {images:,} images at the moment; the job stops there")
    largest = max(block.count for block in left)
    if has_condition and licensed is not None and licensed < largest:
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
