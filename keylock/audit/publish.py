"""Writing an audit down: the page, and the signed figures beside it."""

import json
from collections.abc import Callable, Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from keylock.audit.case import Case
from keylock.audit.report import render
from keylock.audit.run import AuditPlan, AuditResult
from keylock.auditreport import FIGURES_FILE, PAGE_FILE, AuditRecord, Judged, page_digest, sign_audit
from keylock.crypto.signing import SigningKey
from keylock.files.atomic import PUBLIC, write_file
from keylock.reports.environment import installed_versions

__all__ = ["publish_audit"]


def publish_audit(
    case: Case,
    plan: AuditPlan,
    result: AuditResult,
    *,
    pixels: NDArray[np.uint8],
    now: Callable[[], datetime],
    signing_key: SigningKey | None,
    baseline: Sequence[Judged] = (),
) -> AuditRecord:
    """Write `report.html` and `audit.json` into the folder of the plan.

    Args:
        case: What was audited.
        plan: How.
        result: What came out.
        pixels: The images of the case (count, height, width, channels), uint8.
        now: The clock.
        signing_key: The issuer's; None leaves the figures unsigned.
        baseline: The same attacks on a baseline lock.

    Returns:
        What was written.
    """
    record = AuditRecord(
        model=case.name,
        model_digest=case.digest,
        lock=case.lock,
        created=now(),
        suite=plan.suite if not plan.only else f"{plan.suite}, of it {', '.join(plan.only)}",
        seed=plan.seed,
        about=case.about,
        budget=plan.spent.as_dict(),
        policy=plan.policy.model_dump(mode="json", exclude_defaults=True),
        versions=installed_versions(),
        judged=result.judged,
        gate=result.gate,
        baseline=tuple(baseline),
        own=result.own,
    )
    page = render(record, result, pixels)
    write_file(plan.out / PAGE_FILE, page, mode=PUBLIC)
    if signing_key is None:
        unsigned = {"audit": record.model_dump(mode="json"), "page": page_digest(page)}
        text = json.dumps(unsigned, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    else:
        text = sign_audit(record, page, signing_key)
    write_file(plan.out / FIGURES_FILE, text, mode=PUBLIC)
    return record
