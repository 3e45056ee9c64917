"""The report of an audit as a signed document: what is in it, and how whoever gets it checks it. Needs no torch.

`keylock.audit` carries audits out and writes the documents. What reads them is here, because customers and auditors
have neither torch nor the attacks.
"""

from keylock.auditreport.record import (
    AuditRecord,
    CheckRecord,
    Finding,
    Interval,
    Judged,
    Point,
    Recovery,
    Verdict,
)
from keylock.auditreport.signed import FIGURES_FILE, PAGE_FILE, VerifiedAudit, page_digest, sign_audit, verify_audit

__all__ = [
    "FIGURES_FILE",
    "PAGE_FILE",
    "AuditRecord",
    "CheckRecord",
    "Finding",
    "Interval",
    "Judged",
    "Point",
    "Recovery",
    "Verdict",
    "VerifiedAudit",
    "page_digest",
    "sign_audit",
    "verify_audit",
]
