"""The report of an audit: one HTML page with a plain conclusion first, then curves, picture grids and every figure."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from keylock.audit.comparisons import near_copies_table, own_network_said, own_network_table, toolkit_tables
from keylock.audit.conclusion import GROUPS, conclude
from keylock.audit.curves import charts_of
from keylock.audit.families import family_of
from keylock.audit.policy import Policy
from keylock.audit.run import AuditResult
from keylock.audit.scoring import similarity_to
from keylock.auditreport.record import AuditRecord, Judged
from keylock.imaging.heatmaps import colourise, resize, without_peaks
from keylock.reports import Cell, Picture, Table, embed, render_page

__all__ = ["render"]

_VERDICTS = {
    "fail": ("fails", "bad"),
    "pass": ("holds", "good"),
    "measured": ("not promised", "faint"),
    "skipped": ("not tried", "faint"),
    "error": ("not tried: error", "bad"),
}
_SUMMARY = ("attack", "the lock", "attacker", "PCC", "allowed", "advantage", "what it took")
_COLUMNS = ("attack", "the lock", "PCC", "chance", "own model", "advantage", "top 10 %", "accuracy", "what it took")
_SHOWN_ATTACKS = 5
_SIDE = 96


class _Group(NamedTuple):
    """All attacks of one kind of attacker."""

    title: str
    meaning: str
    table: Table


class _Grid(NamedTuple):
    """Pictures of an explainer's maps, a row for each image."""

    explainer: str
    titles: tuple[str, ...]
    rows: tuple[tuple[Picture, ...], ...]


def render(record: AuditRecord, result: AuditResult, pixels: NDArray[np.uint8]) -> str:
    """Return the report as HTML.

    Args:
        record: What is reported.
        result: Maps to show.
        pixels: The first images (up to 6, height, width, channels), as pixels.
    """
    grids = [_grid(record, result, pixels, explainer) for explainer in result.truths]
    return render_page(
        "keylock.audit",
        "audit.html",
        record=record,
        created=f"{record.created:%Y-%m-%d %H:%M}",
        conclusion=conclude(record),
        summary=_summary(record.judged),
        charts=charts_of(record),
        near_copies=near_copies_table(record),
        toolkits=toolkit_tables(record),
        own_network=own_network_table(record),
        own_network_said=own_network_said(record),
        grids=[grid for grid in grids if grid.rows],
        groups=_groups(record),
        notes=_notes(record),
        baseline=_table("The same attacks on a baseline lock", record.baseline),
        made_of=_made_of(record),
    )


def _summary(judged: Iterable[Judged]) -> Table:
    """Return one row for each family: the worst of its variants."""
    families: dict[str, Judged] = {}
    for one in judged:
        families.setdefault(one.finding.attack.partition("/")[0], one)
    rows = [_summary_row(one) for one in families.values() if one.verdict != "skipped"]
    return Table.of("The worst attack of each kind", _SUMMARY, rows, kind="attacks")


def _summary_row(one: Judged) -> list[Cell | str]:
    attack, verdict, pcc, _chance, own, advantage, _top, _accuracy, cost = _row(one)
    if one.recovery is not None:
        # What is allowed has a column of its own.
        verdict = _verdict(one)._replace(below="")
    return [attack, verdict, one.finding.group, pcc, own, advantage, cost]


def _table(label: str, judged: Iterable[Judged]) -> Table:
    return Table.of(label, _COLUMNS, map(_row, judged), kind="attacks")


def _row(one: Judged) -> list[Cell | str]:
    finding, recovery = one.finding, one.recovery
    first = [_title(one), _verdict(one)]
    if recovery is None:
        return [*first, *[""] * 6, _cost(one)]
    mean, low, high = recovery.pcc
    return [
        *first,
        Cell(f"{mean:+.3f}", f"{low:+.3f} to {high:+.3f}"),
        f"{recovery.chance:.3f}",
        "-" if one.own is None else f"{one.own:.3f}",
        Cell("-" if one.advantage is None else f"{one.advantage:+.3f}", kind="bad" if one.verdict == "fail" else ""),
        Cell(f"{recovery.top_overlap[0]:.0%}", f"chance {recovery.chance_top_overlap:.0%}"),
        "-" if finding.accuracy is None else f"{finding.accuracy:.1%}",
        _cost(one),
    ]


def _title(one: Judged) -> Cell:
    """Return what was done in words, and below it the attack's own name and what its maps are held against."""
    recovery, below = one.recovery, one.finding.attack
    if recovery is not None:
        against = "" if recovery.truth == recovery.label else f", held against {recovery.truth}"
        below = f"{below}: {recovery.label}{against}"
    return Cell(one.finding.summary.rstrip("."), below)


def _verdict(one: Judged) -> Cell:
    finding, (word, kind) = one.finding, _VERDICTS[one.verdict]
    bad = sum(check.good is False for check in finding.checks)
    if finding.separation is not None:
        below = f"told apart: {finding.separation:.2f}"
    elif finding.checks:
        below = f"{bad} of {len(finding.checks)} checks bad"
    else:
        below = finding.reason or one.limit
    return Cell(word, below, f"verdict {kind}")


def _cost(one: Judged) -> Cell:
    names = (("queries", "queries"), ("labelled", "labels"), ("pairs", "pairs"), ("steps", "steps"))
    parts = [f"{one.finding.cost[key]:,} {name}" for key, name in names if one.finding.cost.get(key)]
    if "seconds" in one.finding.cost:
        parts.append(f"{one.finding.cost['seconds']:,.0f} s")
    return Cell(", ".join(parts), kind="price")


def _grid(record: AuditRecord, result: AuditResult, pixels: NDArray[np.uint8], explainer: str) -> _Grid:
    truth = result.truths[explainer]
    columns: list[tuple[str, Tensor]] = [("true map", truth), ("keyless map", result.keyless[explainer])]
    for title, attack, label in _closest(record, explainer):
        maps = result.samples.get(attack, {}).get(label)
        if maps is not None and len(columns) < 2 + _SHOWN_ATTACKS:
            columns.append((title, maps))
    rows = []
    for place in range(min(len(pixels), *(len(maps) for _, maps in columns))):
        image = Image.fromarray(pixels[place].squeeze()).convert("RGB")
        shown = [embed(image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST), f"image {place + 1}")]
        for title, maps in columns:
            similar = float(similarity_to(maps[place : place + 1], truth[place : place + 1])[0])
            caption = f"r = {similar:+.2f}" if np.isfinite(similar) else "constant"
            alt = f"{title} of image {place + 1} by {explainer}"
            shown.append(embed(_drawn(maps[place]), alt, caption="" if maps is truth else caption))
        rows.append(tuple(shown))
    return _Grid(explainer, ("image", *(title for title, _ in columns)), tuple(rows))


def _closest(record: AuditRecord, explainer: str) -> list[tuple[str, str, str]]:
    """Return title, attack and label of the best of each family by how close it came, T2 left out."""
    found = [
        (recovery.found, family_of(one.finding).name, one.finding.attack, recovery.label)
        for one in record.judged
        if one.finding.group in {"T0", "T1"} and one.finding.attack != "keyless"
        for recovery in one.finding.recoveries
        if recovery.truth == explainer
    ]
    best: dict[str, tuple[str, str, str]] = {}
    for _, title, attack, label in sorted(found, reverse=True):
        best.setdefault(title, (title, attack, label))
    return list(best.values())


def _drawn(saliency: Tensor) -> Image.Image:
    shown = without_peaks(saliency.float().numpy())
    return Image.fromarray(colourise(resize(shown, size=(_SIDE, _SIDE))))


def _groups(record: AuditRecord) -> list[_Group]:
    found = []
    for name, (title, meaning) in GROUPS.items():
        members = [one for one in record.judged if one.finding.group == name]
        if members:
            found.append(_Group(title, meaning, _service(members) if name == "service" else _table(title, members)))
    return found


def _service(members: Iterable[Judged]) -> Table:
    rows: list[list[Cell | str]] = []
    for one in members:
        if not one.finding.checks:
            rows.append([_title(one), _verdict(one), "", ""])
        for check in one.finding.checks:
            word, kind = {True: ("good", "good"), False: ("bad", "bad"), None: ("for the record", "faint")}[check.good]
            checked, found = Cell(check.name, kind="words"), Cell(check.value, kind="words")
            rows.append([_title(one), Cell(word, kind=f"verdict {kind}"), checked, found])
    return Table.of("Service", ("attack", "the check", "what was looked at", "what was found"), rows, kind="checks")


def _notes(record: AuditRecord) -> list[tuple[str, str]]:
    return [
        (
            one.finding.attack,
            ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in one.finding.notes.items()),
        )
        for one in record.judged
        if one.finding.notes and one.finding.group != "service"
    ]


def _made_of(record: AuditRecord) -> list[tuple[str, str]]:
    return [
        ("model", record.model_digest),
        ("suite", f"{record.suite}, seed {record.seed}"),
        ("budget", ", ".join(f"{name} {value}" for name, value in record.budget.items())),
        *_policy(record.policy),
        ("versions", ", ".join(f"{name} {value}" for name, value in record.versions.items())),
    ]


def _policy(content: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return what was promised, for each attacker and kind of attack."""
    policy = Policy.model_validate(content)
    limits = {"T0": policy.t0, "T1": policy.t1, "T2": policy.t2, **policy.attacks}
    most = policy.detection.max_separation
    return [
        *((f"promised, {name}", limit.describe() or "nothing") for name, limit in limits.items()),
        ("promised, detection", "nothing" if most is None else f"told apart with a probability <= {most:g}"),
        ("promised, service", "every check good" if policy.service.all_good else "nothing"),
    ]
