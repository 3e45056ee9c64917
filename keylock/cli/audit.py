"""`keylock audit`: attack your own lock, and write a report."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._console import JsonOption, StoppedError, note, print_json, print_table
from keylock.cli._home import DEFAULT_HOME, HomeOption
from keylock.cli._lists import split_list
from keylock.cli._measured_data import DataOptions, ReferenceOption, VendorBundleArgument, open_data_of, seed_of
from keylock.cli._options import takes
from keylock.cli._places import make_folder
from keylock.cli._secrets import KeyOptions, find_opener
from keylock.errors import InputError, UnknownNameError
from keylock.files.exclusive import held

if TYPE_CHECKING:
    from keylock.audit import AuditPlan, AuditResult, Case, Judged, Oracle
    from keylock.audit.service.bench import Bench
    from keylock.auditreport import AuditRecord
    from keylock.bundle import Sealer
    from keylock.cli._progress import Display
    from keylock.crypto.signing import SigningKey
    from keylock.trigger.keys import KeySeed

__all__ = ["audit"]

_SERVED_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """What `keylock audit` was told; the help says what each is."""

    bundle: VendorBundleArgument
    data: DataOptions
    suite: Annotated[
        str, typer.Option(metavar="quick|standard|full", help="Which attacks to run, and for how long.")
    ] = "standard"
    only: Annotated[
        list[str] | None, typer.Option(metavar="LIST", help="Run only these attacks or families; may be repeated.")
    ] = None
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Policy (TOML): limits that the audit judges by. [keylock's own]"),
    ] = None
    baseline: Annotated[
        str | None, typer.Option(metavar="naive", help="Also attack a baseline lock, trained by the naive recipe.")
    ] = None
    oracle: Annotated[
        str,
        typer.Option(metavar="torch|onnx|HOST:PORT", help="Server that attackers without the bundle ask."),
    ] = "torch"
    reference: ReferenceOption = None
    base: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Public weights that the reference was fine-tuned from."),
    ] = None
    key: KeyOptions
    home: HomeOption = DEFAULT_HOME
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed.")] = 0
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Attacks to run at once. [one for each core that memory allows; 1 beside Linux]"
        ),
    ] = None
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the report.")] = Path("report")
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 12 if the lock fails an attack.")] = False
    as_json: JsonOption = False


@takes(AuditOptions)
def audit(options: AuditOptions) -> None:
    """Attack a lock, and write a report.

    Every attack is written down as it ends: stopped by Ctrl-C and run again, the audit goes on where it was. The
    report is signed where the vendor's directory has an issuer key. What is attacked and how: docs/audit.md.
    """
    from keylock.audit import AuditPlan, Policy
    from keylock.audit.budgets import budget_of
    from keylock.audit.case_loader import open_case
    from keylock.audit.publish import publish_audit
    from keylock.bundle import open_bundle

    if options.baseline not in {None, "naive"}:
        raise UnknownNameError("baseline", str(options.baseline), ["naive"])
    bundle, out = options.bundle, options.out
    secret = find_opener(bundle, options.key)
    only = _names(options.only)
    plan = AuditPlan(out=out, suite=options.suite, only=only, policy=Policy.load(options.policy), seed=options.seed)
    manifest = open_bundle(bundle, trusted=None).manifest
    signing_key = _signing_key(options.home)
    make_folder(out)
    with held(out, "keylock audit"), _asked(options.oracle, bundle) as asked:
        case, pixels = open_case(
            bundle,
            open_data_of(options.data, manifest),
            secret=secret,
            budget=budget_of(options.suite),
            reference=options.reference,
            base=options.base,
            seed=seed_of(manifest),
            asked=asked,
        )
        result, beside = _attack(
            case, plan, bundle, secret, baseline=options.baseline is not None, workers=options.workers
        )
    record = publish_audit(
        case, plan, result, pixels=pixels, now=lambda: datetime.now(UTC), signing_key=signing_key, baseline=beside
    )
    _report(record, out, signed=signing_key is not None, as_json=options.as_json)
    if options.strict and record.count("fail"):
        from keylock.cli import EXIT_AUDIT_FAILED

        raise typer.Exit(EXIT_AUDIT_FAILED)


def _names(given: list[str] | None) -> tuple[str, ...]:
    """Return the attacks and families to run alone; none where `--only` was not given."""
    names = tuple(dict.fromkeys(split_list(given)))
    if given is not None and not names:
        raise InputError("--only names none: give names with commas between them, or leave it out")
    return names


def _attack(
    case: "Case",
    plan: "AuditPlan",
    bundle: Path,
    secret: "KeySeed | Sealer",
    *,
    baseline: bool,
    workers: int | None,
) -> "tuple[AuditResult, tuple[Judged, ...]]":
    """Return what came of the attacks on the lock, and of those on a baseline lock where there is to be one."""
    from keylock.audit import can_share, run_audit, worker_count
    from keylock.cli._progress import shown_progress

    def bench() -> "AbstractContextManager[Bench]":
        from keylock.audit.service.bench import serving_bench

        return serving_bench(bundle, secret, case.images[:_SERVED_IMAGES].numpy())

    if workers is not None and workers > 1 and not can_share(case):
        raise InputError(f"--workers {workers} needs Linux, and --oracle torch: leave it out")
    count = worker_count(case, plan.spent) if workers is None else workers
    try:
        with shown_progress() as progress:
            said = _Said(progress.say)
            result = run_audit(case, plan, progress=progress, bench=bench, heard=said, workers=count)
            return result, _audit_baseline(case, plan, progress, said, count) if baseline else ()
    except KeyboardInterrupt:
        raise StoppedError(f"stopped; what was found is kept in {plan.out}: run the same command to go on") from None


class _Said:
    """Says what came of each attack."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def __call__(self, judged: "Judged") -> None:
        finding, recovery = judged.finding, judged.recovery
        text = f"{judged.verdict:8} {finding.attack}"
        if recovery is not None:
            text += f": PCC {recovery.pcc[0]:+.3f}, chance {recovery.chance:.3f}, advantage {judged.advantage:+.3f}"
        elif finding.separation is not None:
            text += f": told apart {finding.separation:.3f}"
        elif finding.reason:
            text += f": {finding.reason}"
        if finding.notes.get("refused"):
            text += f"; {finding.notes['refused']:,} refused"
        self._say(text)


def _audit_baseline(
    case: "Case", plan: "AuditPlan", progress: "Display", said: _Said, workers: int
) -> "tuple[Judged, ...]":
    from keylock.audit import run_audit
    from keylock.audit.baseline import BASELINE_ATTACKS, baseline_case

    folder = plan.out / "baseline"
    baseline = baseline_case(case, plan.spent, folder=folder, seed=plan.seed, progress=progress)
    progress.say("the same attacks on a baseline lock")
    narrowed = replace(plan, out=folder, only=BASELINE_ATTACKS)
    return run_audit(baseline, narrowed, progress=progress, heard=said, workers=workers).judged


def _signing_key(home: Path) -> "SigningKey | None":
    from keylock.crypto.signing import Home

    found = Home(home.expanduser())
    if not found.signing_key_path.is_file():
        note(f"there is no issuer key in {found.path}: the report will not be signed")
        return None
    return found.signing_key()


@contextmanager
def _asked(oracle: str, bundle: Path) -> "Iterator[Callable[[], Oracle] | None]":
    """Yield what makes the oracle; None stands for the torch module."""
    from keylock.audit import GraphOracle, ServerOracle

    if oracle == "torch":
        yield None
    elif oracle == "onnx":
        yield lambda: GraphOracle(bundle)
    elif re.fullmatch(r".+:\d+", oracle):
        from keylock_client import Client

        with Client(oracle) as client:
            yield lambda: ServerOracle(client)
    else:
        raise UnknownNameError("oracle", oracle, ["torch", "onnx", "HOST:PORT"])


def _report(record: "AuditRecord", out: Path, *, signed: bool, as_json: bool) -> None:
    from keylock.auditreport import FIGURES_FILE, PAGE_FILE

    if as_json:
        files = [out / PAGE_FILE, out / FIGURES_FILE]
        print_json({**record.model_dump(mode="json"), "files": files, "signed": signed})
        return
    rows = [_row(one) for one in record.judged if one.verdict != "skipped"]
    print_table(("verdict", "attack", "recovered", "PCC", "chance", "own model", "advantage"), rows)
    verdicts = ("fail", "error", "measured", "pass", "skipped")
    typer.echo("\n" + ", ".join(f"{record.count(verdict)} {verdict}" for verdict in verdicts))  # type: ignore[arg-type]
    typer.echo(f"wrote {out / PAGE_FILE} and {out / FIGURES_FILE}" + ("" if signed else ", not signed"))


def _row(one: "Judged") -> tuple[str, ...]:
    recovery = one.recovery
    if recovery is None:
        told = "" if one.finding.separation is None else f"told apart {one.finding.separation:.3f}"
        bad = sum(check.good is False for check in one.finding.checks)
        text = told or one.finding.reason or f"{bad} of {len(one.finding.checks)} checks bad"
        return one.verdict, one.finding.attack, text, "-", "-", "-", "-"
    own = "-" if one.own is None else f"{one.own:.3f}"
    advantage = "-" if one.advantage is None else f"{one.advantage:+.3f}"
    pcc, chance = f"{recovery.pcc[0]:+.3f}", f"{recovery.chance:.3f}"
    return one.verdict, one.finding.attack, recovery.label, pcc, chance, own, advantage
