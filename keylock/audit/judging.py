"""From what was found to a verdict."""

from collections.abc import Callable, Iterable

from keylock.audit.policy import Policy
from keylock.audit.scoring import SELF
from keylock.auditreport.record import Finding, Judged, Recovery, Verdict

__all__ = ["judge", "worst_first"]

OwnModel = Callable[[Finding, Recovery], float | None]
"""What a model of the attacker's own shows at the price of a finding; None where nothing was trained for it."""

_ORDER: dict[Verdict, int] = {"fail": 0, "error": 1, "measured": 2, "pass": 3, "skipped": 4}


def judge(finding: Finding, policy: Policy, own_model: OwnModel) -> Judged:
    """Hold a finding against a policy.

    Args:
        finding: What an attack found.
        policy: What is promised.
        own_model: Gives the baseline of the leak advantage.
    """
    if finding.status != "done":
        return Judged(finding=finding, verdict=finding.status)
    if finding.group == "service":
        bad = any(check.good is False for check in finding.checks)
        known = any(check.good is not None for check in finding.checks)
        verdict: Verdict = "measured" if not policy.service.all_good or not known else "fail" if bad else "pass"
        return Judged(finding=finding, verdict=verdict, limit="every check good" if policy.service.all_good else "")
    if finding.group == "detection":
        most = policy.detection.max_separation
        if most is None or finding.separation is None:
            return Judged(finding=finding, verdict="measured")
        kept = max(finding.separation, 1 - finding.separation) <= most
        return Judged(finding=finding, verdict="pass" if kept else "fail", limit=f"separation <= {most:g}")
    return _judge_recovery(finding, policy, own_model)


def _judge_recovery(finding: Finding, policy: Policy, own_model: OwnModel) -> Judged:
    limit = policy.limit_of(finding.attack, finding.group)
    if not finding.recoveries:
        return Judged(finding=finding, verdict="measured", limit=limit.describe())
    bases = [_base(finding, recovery, own_model) for recovery in finding.recoveries]
    allowed = [
        limit.allows(recovery.found, chance=abs(recovery.chance), own=base)
        for recovery, base in zip(finding.recoveries, bases, strict=True)
    ]
    advantages = [recovery.found - base for recovery, base in zip(finding.recoveries, bases, strict=True)]
    # One that is not allowed counts before any that is.
    worst = max(range(len(bases)), key=lambda place: (allowed[place] is False, advantages[place]))
    verdict: Verdict = "measured" if allowed[worst] is None else "pass" if allowed[worst] else "fail"
    return Judged(
        finding=finding,
        verdict=verdict,
        worst=worst,
        own=round(bases[worst], 5),
        advantage=round(advantages[worst], 5),
        limit=limit.describe(),
    )


def _base(finding: Finding, recovery: Recovery, own_model: OwnModel) -> float:
    """Return what the attacker gets without the lock's help: by a model of his own, or by any map, either way up."""
    own = None if recovery.truth == SELF else own_model(finding, recovery)
    chance = abs(recovery.chance)
    return max(chance, own if own is not None else chance)


def worst_first(judged: Iterable[Judged]) -> tuple[Judged, ...]:
    """Sort: what fails, by leak advantage; then what is measured, what passes, and what was left out."""
    return tuple(
        sorted(judged, key=lambda one: (_ORDER[one.verdict], -(one.advantage if one.advantage is not None else -2.0)))
    )
