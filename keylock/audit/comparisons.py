"""Tables of an audit's report that set many figures side by side: near copies, public toolkits, own networks."""

from keylock.audit.attacks.toolkits import PLACES
from keylock.audit.scoring import SELF
from keylock.auditreport.record import AuditRecord, Finding, Judged, Recovery
from keylock.explainers.toolkits import TOOLKITS
from keylock.reports import Cell, Table

__all__ = ["near_copies_table", "own_network_said", "own_network_table", "toolkit_tables"]

_ANSWERED = ("answered with scores", "answered with labels")
_REFUSED = "refused"
_HEADERS = {
    "input": "input",
    "last": "last layer",
    "middle": "middle layer",
    "first": "first layer",
    "stack": "all layers",
}


def toolkit_tables(record: AuditRecord) -> list[Table]:
    """Return for each public toolkit that was run what its methods show, the closest first.

    Every figure is the correlation of what a method shows on the published network with what it shows on the reference
    model; it is marked where its whole interval is beyond chance.
    """
    tables = []
    for toolkit in TOOLKITS:
        found = {
            place: own_figures(one.finding)
            for one in record.judged
            for family, _, place in [one.finding.attack.partition("/")]
            if family == toolkit
        }
        places = [place for place in PLACES if found.get(place)]
        methods = {method for place in places for method in found[place]}
        if methods:
            excess = {
                method: max(_excess(found[place][method]) for place in places if method in found[place])
                for method in methods
            }
            ordered = sorted(methods, key=lambda method: (-excess[method], method))
            rows = [[Cell(method), *(_cell(found[place].get(method)) for place in places)] for method in ordered]
            header = (toolkit.replace("_", "-"), *(_HEADERS[place] for place in places))
            tables.append(Table.of(f"Methods of {header[0]}", header, rows))
    return tables


def own_figures(finding: Finding) -> dict[str, Recovery]:
    """Return by label the comparisons with the same method on the reference model."""
    return {one.label: one for one in finding.recoveries if one.truth == SELF}


def _excess(one: Recovery) -> float:
    return one.found - abs(one.chance)


def _cell(one: Recovery | None) -> Cell:
    if one is None:
        return Cell("-", kind="faint")
    mean, low, high = one.pcc
    certain = (low if mean >= 0 else -high) > abs(one.chance)
    return Cell(f"{mean:+.2f}", f"chance {one.chance:+.2f}", "bad" if certain else "")


def near_copies_table(record: AuditRecord) -> Table:
    """Return what each attacker by near copies got through the query guard, for a picture, and what came of it."""
    found = [
        (one, recovery)
        for one in record.judged
        if one.finding.attack.startswith("near_copies/") and (recovery := one.recovery) is not None
    ]
    found.sort(key=lambda pair: -_excess(pair[1]))
    rows = [_near_copies_row(one, recovery) for one, recovery in found]
    header = ("attacker", "scores", "labels", "refused", "PCC", "chance", "above chance")
    return Table.of("What got through the query guard", header, rows)


def _near_copies_row(one: Judged, recovery: Recovery) -> list[Cell | str]:
    notes, excess = one.finding.notes, _excess(recovery)
    pictures = int(notes["pictures"])
    return [
        Cell(one.finding.summary.rstrip("."), one.finding.attack),
        *(f"{int(notes[kind]) / pictures:.1f}" for kind in (*_ANSWERED, _REFUSED)),
        _measured(recovery, ""),
        f"{recovery.chance:+.2f}",
        Cell(f"{excess:+.2f}", kind="bad" if one.verdict == "fail" else ""),
    ]


def own_network_table(record: AuditRecord) -> Table:
    """Return for each explainer what fine-tuning shows, and what networks of the attacker's own show."""
    rows: list[list[Cell | str]] = []
    for recovery in () if record.own is None else record.own.recoveries:
        tuned = [
            (one, found)
            for one in record.judged
            if one.finding.attack.startswith("fine_tune/")
            for found in one.finding.recoveries
            if found.truth == recovery.truth
        ]
        best = max(tuned, key=lambda pair: pair[1].found, default=None)
        rows.append([recovery.truth, _tuned(best), _measured(recovery, ""), f"{recovery.chance:+.2f}"])
    header = ("explainer", "fine-tuned, the best", "own network, as accurate", "chance")
    return Table.of("Fine-tuning, and an own network of the same accuracy", header, rows)


def _tuned(best: tuple[Judged, Recovery] | None) -> Cell:
    if best is None:
        return Cell("-", kind="faint")
    one, found = best
    accuracy = "" if one.finding.accuracy is None else f", {one.finding.accuracy:.1%} right"
    return _measured(found, f"{one.finding.cost['labelled']:,} labels{accuracy}")


def _measured(one: Recovery, below: str) -> Cell:
    return Cell(f"{one.pcc[0]:+.2f}", below or f"{one.pcc[1]:+.2f} to {one.pcc[2]:+.2f}")


def own_network_said(record: AuditRecord) -> str:
    """Say how the own network was trained, and whether it is as accurate as the published one."""
    own = record.own
    if own is None:
        return ""
    reached = "which is reached" if own.accuracy >= own.wanted else "which was not reached with this budget"
    return (
        f"Trained from scratch on {own.images:,} labelled images for {own.steps:,} steps, a network of the attacker's "
        f"own is right on {own.accuracy:.1%} of the test images. The published one is right on {own.wanted:.1%}, "
        f"{reached}."
    )
