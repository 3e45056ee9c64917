"""From a record to its conclusion in plain words: does the lock hold, against whom, and what to do."""

from typing import NamedTuple

from keylock.audit.families import SEALED_DELTA, family_of
from keylock.audit.scoring import SELF
from keylock.auditreport.record import AuditRecord, Finding, Judged

__all__ = ["GROUPS", "TRAINED_TRIGGER", "Attacker", "Conclusion", "conclude"]

TRAINED_TRIGGER = "trained trigger"
"""What a record calls a lock whose network itself tells the trigger."""


class _Group(NamedTuple):
    title: str
    meaning: str


GROUPS = {
    "T0": _Group(
        "T0: public calls alone",
        "An attacker who asks the service like anybody without a license: predictions, and maps made without the key.",
    ),
    "T1": _Group(
        "T1: the published bundle",
        "An attacker who also has the files of the bundle, that is network and weights, but no image with the trigger.",
    ),
    "T2": _Group(
        "T2: the bundle, and true maps of other images",
        "An attacker who also has true maps of some other images, as a customer with a license collects them.",
    ),
    "detection": _Group(
        "Detection", "Somebody who does not want true maps, but wants to know whether the maps shown are locked."
    ),
    "service": _Group("Service", "Holes in the running servers: what they tell, log, keep in memory or answer late."),
}
"""Who attacks, in a sentence each."""


class Attacker(NamedTuple):
    """What came of the attacks of one kind of attacker.

    Attributes:
        title: Who it is.
        meaning: The same in a sentence.
        result: What came of it, in a sentence or two.
        kind: `bad` where the lock fails, `good` where it holds, empty where nothing is promised.
    """

    title: str
    meaning: str
    result: str
    kind: str


class Conclusion(NamedTuple):
    """What an audit comes to.

    Attributes:
        verdict: In a sentence.
        kind: `bad`, `good` or empty.
        attackers: By kind of attacker.
        advice: What to do, in sentences; the most pressing first.
        left_out: What was not tried, in a sentence; may be empty.
    """

    verdict: str
    kind: str
    attackers: tuple[Attacker, ...]
    advice: tuple[str, ...]
    left_out: str


def conclude(record: AuditRecord) -> Conclusion:
    """Return what an audit comes to."""
    failed, held = record.count("fail"), record.count("pass")
    members = {group: [one for one in record.judged if one.finding.group == group] for group in GROUPS}
    return Conclusion(
        verdict=_verdict(failed, held),
        kind="bad" if failed else "good" if held else "",
        attackers=tuple(_attacker(group, found) for group, found in members.items() if found),
        advice=_advice(record),
        left_out=_left_out(record),
    )


def _verdict(failed: int, held: int) -> str:
    judged = failed + held
    if failed:
        return f"This lock does not hold what is promised: {failed} of {judged} attacks got through."
    if held:
        what = "the one attack" if held == 1 else f"all {held} attacks"
        return f"This lock held against {what} that something is promised about. Of others this says nothing."
    return "Nothing can be concluded: no attack was carried out that something is promised about."


def _attacker(group: str, found: list[Judged]) -> Attacker:
    title, meaning = GROUPS[group]
    failed = [one for one in found if one.verdict == "fail"]
    held = sum(one.verdict == "pass" for one in found)
    if failed:
        text = f"{len(failed)} of {len(failed) + held} attacks got through{_worst(failed)}."
    elif held:
        text = f"Held: none of {held} attacks got through{_worst(found)}."
    else:
        measured = [one for one in found if one.verdict == "measured"]
        text = f"Measured, not promised{_worst(measured)}." if measured else "Not tried."
    return Attacker(title, meaning, text, "bad" if failed else "good" if held else "")


def _worst(found: list[Judged]) -> str:
    """Return what came closest, as the end of a sentence; nothing where there is no figure."""
    one = max((one for one in found if one.recovery is not None), key=lambda one: one.advantage or 0.0, default=None)
    if one is None or one.recovery is None:
        return _most_telling([one.finding for one in found if one.finding.separation is not None])
    what = "those of the same method on the unlocked model" if one.recovery.truth == SELF else "the true ones"
    beside = "" if one.own is None else f"; {one.own:.2f} is had without the lock's help"
    return (
        f". The closest, {family_of(one.finding).name}, shows maps that correlate by {one.recovery.found:.2f} with "
        f"{what}{beside}"
    )


def _most_telling(found: list[Finding]) -> str:
    right = [(max(one.separation, 1 - one.separation), one.summary) for one in found if one.separation is not None]
    if not right:
        return ""
    probability, summary = max(right)
    said = summary.rstrip(".")
    return (
        f". The best way ({said[:1].lower()}{said[1:]}) tells a lock from an unlocked model with a probability of "
        f"{probability:.2f}, where guessing has 0.50"
    )


def _advice(record: AuditRecord) -> tuple[str, ...]:
    failed = [one for one in record.judged if one.verdict == "fail"]
    # What is wrong with the service is mended, and mended first.
    failed.sort(key=lambda one: one.finding.group != "service")
    advice = list(dict.fromkeys(text for one in failed for text in family_of(one.finding).advice))
    if record.lock != TRAINED_TRIGGER:
        advice = [text for text in advice if text != SEALED_DELTA]
    if not failed and record.count("pass"):
        advice.append("Audit again after every training, and with the suite full before much depends on the lock.")
    if record.count("error"):
        advice.append("Run the same command again: it tries once more what could not be carried out, and that alone.")
    return tuple(advice)


def _left_out(record: AuditRecord) -> str:
    parts = []
    for verdict, text in (("error", "could not be carried out"), ("skipped", "did not apply, or needed an option")):
        names = [one.finding.attack for one in record.judged if one.verdict == verdict]
        if names:
            parts.append(f"{len(names)} {text} ({', '.join(names)})")
    return "Not tried: " + "; ".join(parts) + "." if parts else ""
