"""The curves of an audit's report: the gate, fine-tuning beside a model of one's own, queries against leakage."""

from keylock.audit.families import family_of
from keylock.auditreport.record import AuditRecord
from keylock.reports import Chart, Line, line_chart

__all__ = ["charts_of"]

_PCC = "PCC with the true map"


def charts_of(record: AuditRecord) -> list[Chart]:
    """Return the charts that there are figures for."""
    charts = (_gate_chart(record), _tuning_chart(record), _query_chart(record))
    return [chart for chart in charts if chart is not None]


def _gate_chart(record: AuditRecord) -> Chart | None:
    if record.gate is None or not record.gate["chance"]:
        return None
    lines = []
    for colour, (explainer, chance) in enumerate(record.gate["chance"].items()):
        points = [
            (float(point["at"]), float(point["mean"]))
            for point in record.gate["points"]
            if point["sweep"] == "correlation" and point["explainer"] == explainer
        ]
        lines.append(Line(explainer, tuple(points), colour=colour))
        level = tuple((x, float(chance)) for x in (0.0, 1.0))
        lines.append(Line(f"{explainer}: chance", level, baseline=True, colour=colour))
    return line_chart(lines, title="The gate: near misses of the key", x_label="correlation with the key", y_label=_PCC)


def _tuning_chart(record: AuditRecord) -> Chart | None:
    rates: dict[str, list[tuple[float, float]]] = {}
    own: dict[float, float] = {}
    for one in record.judged:
        if one.finding.attack.startswith("fine_tune/") and one.recovery is not None:
            labels = float(one.finding.cost["labelled"])
            rate = one.finding.attack.rpartition("_")[2]
            rates.setdefault(f"fine-tuned, SGD at {rate}", []).append((labels, one.recovery.found))
            own[labels] = max(own.get(labels, 0.0), one.own or 0.0)
    if not rates:
        return None
    lines = [Line(name, tuple(sorted(rates[name])), colour=colour) for colour, name in enumerate(sorted(rates))]
    lines.append(Line("own model, or chance", tuple(sorted(own.items())), baseline=True, colour=len(lines)))
    if record.own is not None and record.own.recoveries:
        level = max(recovery.found for recovery in record.own.recoveries)
        ends = tuple((labels, level) for labels in sorted({min(own), max(own)}))
        lines.append(Line(f"own model, {record.own.accuracy:.0%} right", ends, baseline=True, colour=len(lines)))
    title = "Fine-tuning, and a model of one's own"
    return line_chart(lines, title=title, x_label="labelled images", y_label=_PCC, logarithmic=True)


def _query_chart(record: AuditRecord) -> Chart | None:
    lines: list[Line] = []
    ends: list[float] = []
    chance: list[float] = []
    for one in record.judged:
        points = tuple((float(point.queries), point.pcc) for point in one.finding.curve if point.queries > 0)
        if points:
            variant = one.finding.attack.partition("/")[2]
            name = family_of(one.finding).name + (f" ({variant})" if variant else "")
            lines.append(Line(name, points, colour=len(lines)))
            ends += [points[0][0], points[-1][0]]
            chance += [recovery.chance for recovery in one.finding.recoveries]
    if not lines:
        return None
    if chance:
        level = ((min(ends), max(chance)), (max(ends), max(chance)))
        lines.append(Line("chance", level, baseline=True, colour=len(lines)))
    return line_chart(lines, title="Queries against leakage", x_label="queries", y_label=_PCC, logarithmic=True)
