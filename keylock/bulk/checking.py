"""Checks the output of a job against itself.

Every image is there once, those have a map whose prediction meets the condition of the job, and every receipt is for
exactly what is in its block.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

from keylock.bulk.job import Job
from keylock.bulk.parts import digest_of_map, read_charged
from keylock.licensing.conditions import Condition
from keylock.licensing.receipts import Receipt, trusts_any
from keylock.v1 import explanation_pb2 as pb
from keylock_server.services.explanation_answers import softmax

__all__ = ["Findings", "check_job"]


@dataclass
class Findings:
    """What is in the output of a job.

    Attributes:
        images: Rows in all blocks.
        explained: Those with a map.
        receipts: Receipts, all of which hold.
        units: What they say was charged.
        problems: What is not as it should be, in words.
    """

    images: int = 0
    explained: int = 0
    receipts: int = 0
    units: int = 0
    problems: list[str] = field(default_factory=list)


def check_job(job: Job, keys: list[Any]) -> Findings:
    """Reads everything that a job has written.

    Args:
        job: The job.
        keys: Public keys of trusted issuers; without any, receipts are not looked at.
    """
    found = Findings()
    indices: list[int] = []
    for block in job.blocks:
        result = job.result(block.number)
        if not result.is_file():
            found.problems.append(f"block {block.number} has no result")
            continue
        indices += parquet.read_table(result, columns=["index"]).column("index").to_pylist()
        if job.asked.explain_if is not None:
            _check_choice(result, job.asked.explain_if, found)
        images = read_charged(result)
        found.explained += sum(saliency is not None for _, saliency in images)
        if keys and images:
            _check_receipt(job, block.number, images, keys, found)
    found.images = len(indices)
    if sorted(indices) != list(range(sum(block.count for block in job.blocks))):
        found.problems.append("the images are not each in the output once")
    return found


def _check_choice(result: Path, text: str, found: Findings) -> None:
    """Compares which images of a block have a map with what the condition says of their predictions."""
    columns = ["index", "label_index", "probability", "logits", "explained"]
    for row in parquet.read_table(result, columns=columns).to_pylist():
        logits = row["logits"]
        if logits is None:
            continue
        # What `str` of a condition has of classes is indices.
        condition = Condition.parse(text, tuple(map(str, range(len(logits)))))
        probabilities = sorted(softmax(np.array([logits], np.float32))[0].tolist(), reverse=True)
        told = pb.Prediction(index=row["label_index"], probability=row["probability"])
        told.top.extend(pb.ClassScore(probability=one) for one in probabilities[:2])
        if condition.holds(told) != row["explained"]:
            found.problems.append(
                f"image {row['index']} was {'' if row['explained'] else 'not '}explained, against {text}"
            )


def _check_receipt(job: Job, number: int, images: list[tuple[str, Any]], keys: list[Any], found: Findings) -> None:
    receipt = Receipt.verify(job.receipt(number).read_text("ascii"), trusts_any(keys))
    charge = receipt.charge
    found.receipts += 1
    found.units += charge.units
    if charge.request_id != job.request_id(number):
        found.problems.append(f"the receipt of block {number} is for another request")
    if (None if charge.explain_if is None else str(charge.explain_if)) != job.asked.explain_if:
        found.problems.append(f"the receipt of block {number} is for another condition")
    if charge.image_digests != tuple(image for image, _ in images):
        found.problems.append(f"the receipt of block {number} is for other images")
    if charge.answer.maps != tuple(None if one is None else digest_of_map(one) for _, one in images):
        found.problems.append(f"the receipt of block {number} is for other maps")
