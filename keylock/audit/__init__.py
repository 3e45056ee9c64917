"""Attack your own lock before others do.

`run_audit` runs every attack of a suite against a `Case` and judges what it finds by a `Policy`; `write_report` shows
it, and `keylock.auditreport` makes it something a customer can check. The command is `keylock audit`.
"""

from keylock.audit.budgets import SUITES, Budget
from keylock.audit.capacity import can_share, worker_count
from keylock.audit.case import Case
from keylock.audit.contract import ATTACKS, Attack, Goal, Knowledge, Outcome
from keylock.audit.oracle import GraphOracle, LocalOracle, Oracle, ServerOracle
from keylock.audit.policy import Limit, Policy
from keylock.audit.run import AuditPlan, AuditResult, run_audit
from keylock.auditreport.record import AuditRecord, Finding, Judged, Recovery

__all__ = [
    "ATTACKS",
    "SUITES",
    "Attack",
    "AuditPlan",
    "AuditRecord",
    "AuditResult",
    "Budget",
    "Case",
    "Finding",
    "Goal",
    "GraphOracle",
    "Judged",
    "Knowledge",
    "Limit",
    "LocalOracle",
    "Oracle",
    "Outcome",
    "Policy",
    "Recovery",
    "ServerOracle",
    "can_share",
    "run_audit",
    "worker_count",
]
