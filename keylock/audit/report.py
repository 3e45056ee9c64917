"""The report of an audit: one HTML page with a summary that fits a screen, curves, picture grids and every figure."""

from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from keylock.audit.charts import Series, line_chart
from keylock.audit.run import AuditResult
from keylock.audit.scoring import similarity_to
from keylock.auditreport.record import AuditRecord, Judged
from keylock.heatmaps import colourise, resize
from keylock.pages import cell, definitions, page, picture, table

__all__ = ["render"]

_GROUPS = {
    "T0": "T0: public calls alone",
    "T1": "T1: the published bundle",
    "T2": "T2: the bundle, and true maps of other images",
    "detection": "Detection: can it be told that maps are locked?",
    "service": "Service",
}
_COLUMNS = ("verdict", "attack", "who", "PCC", "chance", "own model", "advantage", "top 10 %", "accuracy", "cost")
_SHOWN_ATTACKS = 5
_SIDE = 72
_CUT_OFF = 0.99


def render(record: AuditRecord, result: AuditResult, pixels: NDArray[np.uint8]) -> str:
    """Return the report as HTML.

    Args:
        record: What is reported.
        result: Maps to show.
        pixels: The first images (up to 6, height, width, channels), as pixels.
    """
    css = files("keylock.audit").joinpath("audit.css").read_text("utf-8")
    sections = [
        _header(record),
        _summary(record.judged),
        _curves(record),
        _pictures(record, result, pixels),
        _details(record),
        _baseline(record),
        _made_of(record),
    ]
    return page(f"keylock audit of {record.model}", [one for one in sections if one], css=css)


def _header(record: AuditRecord) -> str:
    failed = record.count("fail")
    recovered = [one.advantage for one in record.judged if one.advantage is not None and one.finding.group != "T2"]
    cards = [
        (str(failed), f"of {len(record.judged)} attacks fail the lock", failed > 0),
        (str(record.count("pass")), "attacks it withstands as promised", False),
        (
            f"{max(recovered):+.3f}" if recovered else "-",
            "largest leak advantage without true maps in hand: PCC beyond a model of one's own",
            bool(recovered) and max(recovered) > 0,
        ),
        (
            str(record.count("measured") + record.count("skipped") + record.count("error")),
            "measured and not promised, or not applicable",
            False,
        ),
    ]
    shown = "".join(
        f'<div class="card{" bad" if bad else ""}"><b>{escape(value)}</b><span>{escape(text)}</span></div>'
        for value, text, bad in cards
    )
    return (
        f"<header><h1>Audit of {escape(record.model)}</h1>"
        f"<p>{record.created:%Y-%m-%d %H:%M} UTC, suite {escape(record.suite)}, {escape(record.about)}; "
        f"lock: {escape(record.lock)}</p>"
        f'<div class="cards">{shown}</div></header>'
    )


def _summary(judged: Iterable[Judged]) -> str:
    """Return one row for each family: the worst of its variants."""
    families: dict[str, Judged] = {}
    for one in judged:
        families.setdefault(one.finding.attack.partition("/")[0], one)
    rows = [_row(one) for one in families.values() if one.verdict != "skipped"]
    return (
        "<section><h2>Summary</h2>"
        + table(_COLUMNS, rows, kind="audit")
        + '<p class="note">The worst variant of each kind of attack, worst first. <b>PCC</b>: correlation of recovered '
        "with true maps, with its 95 % interval. <b>Chance</b>: of true maps of two images. <b>Own model</b>: what the "
        "attacker gets by training from scratch on the same images for as many steps, chance at least. "
        "<b>Advantage</b>: PCC, without its sign, beyond that.</p></section>"
    )


def _row(one: Judged) -> list[str]:
    finding, recovery = one.finding, one.recovery
    name = finding.attack if recovery is None else f"{finding.attack}: {recovery.label}"
    found = [
        cell(one.verdict, kind=f"verdict {one.verdict}"),
        cell(name, below="" if recovery is None or recovery.truth == recovery.label else f"against {recovery.truth}"),
        cell(finding.group),
    ]
    if recovery is None:
        told = "" if finding.separation is None else f"told apart {finding.separation:.2f}"
        checks = [check for check in finding.checks if check.good is False]
        text = told or (f"{len(checks)} of {len(finding.checks)} bad" if finding.checks else finding.reason)
        return [*found, cell(text, kind="left"), *[""] * 5, _cost(one)]
    mean, low, high = recovery.pcc
    return [
        *found,
        cell(f"{mean:+.3f}", below=f"{low:+.3f} to {high:+.3f}"),
        f"{recovery.chance:.3f}",
        "-" if one.own is None else f"{one.own:.3f}",
        cell("-" if one.advantage is None else f"{one.advantage:+.3f}", kind="fail" if one.verdict == "fail" else ""),
        f"{recovery.top_overlap[0]:.0%} ({recovery.chance_top_overlap:.0%})",
        "-" if finding.accuracy is None else f"{finding.accuracy:.1%}",
        _cost(one),
    ]


def _cost(one: Judged) -> str:
    names = (("queries", "queries"), ("labelled", "labels"), ("pairs", "pairs"), ("steps", "steps"))
    parts = [f"{one.finding.cost[key]:,} {name}" for key, name in names if one.finding.cost.get(key)]
    parts.append(f"{one.finding.cost.get('seconds', 0):,.0f} s")
    return ", ".join(parts)


def _curves(record: AuditRecord) -> str:
    charts = [
        ("The gate: near misses of the key", _gate_chart(record)),
        ("Fine-tuning, and a model of one's own", _tuning_chart(record)),
        ("Queries against leakage", _query_chart(record)),
    ]
    drawn = "".join(f"<div><h3>{escape(title)}</h3>{chart}</div>" for title, chart in charts if chart)
    return f'<section><h2>Curves</h2><div class="charts">{drawn}</div></section>' if drawn else ""


def _gate_chart(record: AuditRecord) -> str:
    if record.gate is None:
        return ""
    series = []
    for explainer, chance in record.gate["chance"].items():
        points = [
            (float(point["at"]), float(point["mean"]))
            for point in record.gate["points"]
            if point["sweep"] == "correlation" and point["explainer"] == explainer
        ]
        series.append(Series(explainer, tuple(points)))
        series.append(Series(f"{explainer}: chance", tuple((x, float(chance)) for x in (0.0, 1.0)), dashed=True))
    return line_chart(series, x_label="correlation with the key", y_label="PCC to the true map") if series else ""


def _tuning_chart(record: AuditRecord) -> str:
    tuned = [one for one in record.judged if one.finding.attack.startswith("fine_tune/") and one.recovery is not None]
    if not tuned:
        return ""
    lines: dict[str, list[tuple[float, float]]] = {}
    own: dict[float, float] = {}
    for one in tuned:
        assert one.recovery is not None  # noqa: S101 - chosen above
        labels = float(one.finding.cost["labelled"])
        rate = one.finding.attack.rpartition("_")[2]
        lines.setdefault(f"fine-tuned, SGD {rate}", []).append((labels, one.recovery.found))
        own[labels] = max(own.get(labels, 0.0), one.own or 0.0)
    series = [Series(name, tuple(sorted(points))) for name, points in sorted(lines.items())]
    series.append(Series("own model, or chance", tuple(sorted(own.items())), dashed=True))
    return line_chart(series, x_label="labelled images", y_label="PCC to the true map", logarithmic=True)


def _query_chart(record: AuditRecord) -> str:
    series, ends, chance = [], [], []
    for one in record.judged:
        if one.finding.curve:
            points = tuple((float(point.queries), point.pcc) for point in one.finding.curve if point.queries > 0)
            series.append(Series(one.finding.attack, points))
            ends += [points[0][0], points[-1][0]]
            chance += [recovery.chance for recovery in one.finding.recoveries]
    if not series:
        return ""
    series.append(Series("chance", ((min(ends), max(chance)), (max(ends), max(chance))), dashed=True))
    return line_chart(series, x_label="queries", y_label="PCC to the true map", logarithmic=True)


def _pictures(record: AuditRecord, result: AuditResult, pixels: NDArray[np.uint8]) -> str:
    grids = "".join(_grid(record, result, pixels, explainer) for explainer in result.truths)
    return (
        "<section><h2>What attackers see</h2><p>The first images, not chosen. Beside the true and the keyless map the "
        "attacks that came closest; <i>r</i> is the correlation with the true map.</p>" + grids + "</section>"
    )


def _grid(record: AuditRecord, result: AuditResult, pixels: NDArray[np.uint8], explainer: str) -> str:
    truth = result.truths[explainer]
    columns: list[tuple[str, Tensor]] = [("true", truth), ("keyless", result.keyless[explainer])]
    for attack, label in _closest(record, explainer):
        maps = result.samples.get(attack, {}).get(label)
        if maps is not None and len(columns) < 2 + _SHOWN_ATTACKS:
            columns.append((attack if label == explainer else f"{attack}: {label}", maps))
    cells = [f'<span class="head">{escape(text)}</span>' for text in ("image", *(name for name, _ in columns))]
    rows = min(len(pixels), *(len(maps) for _, maps in columns))
    for row in range(rows):
        image = Image.fromarray(pixels[row].squeeze()).convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
        cells.append(f"<figure>{picture(image, 'image')}<figcaption>&nbsp;</figcaption></figure>")
        for name, maps in columns:
            similar = float(similarity_to(maps[row : row + 1], truth[row : row + 1])[0])
            caption = "&nbsp;" if name == "true" else f"r = {similar:+.2f}"
            shown = picture(_drawn(maps[row]), f"{name} map by {explainer}")
            cells.append(f"<figure>{shown}<figcaption>{caption}</figcaption></figure>")
    style = f"grid-template-columns: repeat({1 + len(columns)}, minmax(60px, 104px))"
    return f'<h3>{escape(explainer)}</h3><div class="grid" style="{style}">{"".join(cells)}</div>'


def _closest(record: AuditRecord, explainer: str) -> list[tuple[str, str]]:
    """Return attacks and labels by how close they came to the maps of an explainer, T2 left out."""
    found = [
        (recovery.found, one.finding.attack, recovery.label)
        for one in record.judged
        if one.finding.group in {"T0", "T1"} and one.finding.attack != "keyless"
        for recovery in one.finding.recoveries
        if recovery.truth == explainer
    ]
    return [(attack, label) for _, attack, label in sorted(found, reverse=True)]


def _drawn(saliency: Tensor) -> Image.Image:
    values = saliency.float().numpy()
    limit = float(np.quantile(values, _CUT_OFF))
    shown = np.minimum(values, limit) if limit > 0 else values
    return Image.fromarray(colourise(resize(shown, size=(_SIDE, _SIDE))))


def _details(record: AuditRecord) -> str:
    parts = ["<section><h2>Every attack</h2>"]
    for group, title in _GROUPS.items():
        members = [one for one in record.judged if one.finding.group == group]
        if members:
            parts.append(f"<h3>{escape(title)}</h3>")
            parts.append(_service(members) if group == "service" else table(_COLUMNS, map(_row, members), kind="audit"))
    notes = [
        (one.finding.attack, ", ".join(f"{name} {value}" for name, value in one.finding.notes.items()))
        for one in record.judged
        if one.finding.notes and one.finding.group != "service"
    ]
    parts.append(f"<h3>Notes</h3>{definitions(notes)}" if notes else "")
    said = [(one.finding.attack, f"{one.finding.summary} Limit: {one.limit or 'none'}.") for one in record.judged]
    parts.append(f"<h3>What each does</h3>{definitions(said)}")
    return "".join(parts) + "</section>"


def _service(members: Iterable[Judged]) -> str:
    rows = []
    for one in members:
        if not one.finding.checks:
            rows.append([cell(one.verdict, kind=f"verdict {one.verdict}"), one.finding.attack, one.finding.reason, ""])
        for check in one.finding.checks:
            kind = {True: "pass", False: "fail", None: "measured"}[check.good]
            rows.append([cell(kind, kind=f"verdict {kind}"), one.finding.attack, check.name, check.value])
    return table(("verdict", "attack", "checked", "found"), rows, kind="checks")


def _baseline(record: AuditRecord) -> str:
    if not record.baseline:
        return ""
    return (
        "<section><h2>The same attacks on a naive lock</h2><p>Trained here by the plain recipe, with live BatchNorm "
        "and the key alone, to show that this audit can fail a lock.</p>"
        + table(_COLUMNS, map(_row, record.baseline), kind="audit")
        + "</section>"
    )


def _made_of(record: AuditRecord) -> str:
    rows = [
        ("model", record.model_digest),
        ("suite", f"{record.suite}, seed {record.seed}"),
        ("budget", ", ".join(f"{name} {value}" for name, value in record.budget.items())),
        ("policy", _policy(record.policy)),
        ("versions", ", ".join(f"{name} {value}" for name, value in record.versions.items())),
    ]
    return (
        f"<section><h2>What this was made of</h2>{definitions(rows)}"
        '<p class="note">An attack that is not in this list was not tried. A lock is obfuscation for whoever has the '
        "weights, not cryptography. The figures stand, signed, in audit.json.</p></section>"
    )


def _policy(policy: Mapping[str, object]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in policy.items() if value)
