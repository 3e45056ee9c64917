"""Running an audit: every attack is written down as it ends, so that a stopped audit goes on there.

Attacks are judged one after the other. Where there are several processes they work ahead.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import keylock.audit.attacks
import keylock.audit.service  # noqa: F401 - registers its attacks, as the line above does
from keylock import __version__
from keylock.audit.budgets import Budget, budget_of
from keylock.audit.capacity import can_share
from keylock.audit.case import Case
from keylock.audit.contract import ATTACKS, Attack, Goal, Knowledge, NotApplicableError, Outcome, Steps, attacks_of
from keylock.audit.judging import judge, worst_first
from keylock.audit.learning import classes_of, explained
from keylock.audit.oracle import Oracle
from keylock.audit.own_model import OwnModels, Price
from keylock.audit.policy import Policy
from keylock.audit.scoring import recoveries, separation
from keylock.audit.service.bench import Bench
from keylock.audit.views import PairsView, PublicView, WeightsView
from keylock.audit.workers import Workers
from keylock.auditreport.record import CheckRecord, Finding, Judged, OwnNetwork, Point, Recovery
from keylock.crypto.signing import canonical_json
from keylock.errors import KeylockError
from keylock.evaluation import gate_curve
from keylock.evaluation.gate import POINTS
from keylock.files.atomic import PRIVATE, make_folders
from keylock.training import Progress
from keylock.training.checkpoint import storing

__all__ = ["AuditPlan", "AuditResult", "run_audit"]

_SAMPLES = 6
_GOING_ON = "run the same command to go on"
_VIEWS = {Knowledge.T0: PublicView, Knowledge.T1: WeightsView, Knowledge.T2: PairsView}
_GATE = "gate"
_OWN_NETWORK = "own network, as accurate"


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """What to run.

    Attributes:
        out: Folder of the report, of everything that is written down on the way, and of what is gone on from.
        suite: Which attacks, and what each may spend.
        only: Names of attacks or families to run alone.
        policy: What is promised.
        seed: Of everything drawn at random.
        budget: In place of the suite's.
    """

    out: Path
    suite: str = "standard"
    only: tuple[str, ...] = ()
    policy: Policy = field(default_factory=Policy.load)
    seed: int = 0
    budget: Budget | None = None

    @property
    def spent(self) -> Budget:
        """What every attack may spend."""
        return budget_of(self.suite) if self.budget is None else self.budget


@dataclass(frozen=True)
class AuditResult:
    """What came out.

    Attributes:
        judged: Every attack, the worst first.
        gate: The gate curve as a dictionary, or None.
        samples: Recovered maps of the first images (up to 6, h, w), by attack and label.
        truths: Their true maps, by explainer.
        keyless: Their keyless maps, by explainer.
        own: A network of the attacker's own to hold fine-tuning against; None where that was not tried.
    """

    judged: tuple[Judged, ...]
    gate: dict[str, Any] | None
    samples: Mapping[str, Mapping[str, Tensor]]
    truths: Mapping[str, Tensor]
    keyless: Mapping[str, Tensor]
    own: OwnNetwork | None = None


def run_audit(
    case: Case,
    plan: AuditPlan,
    *,
    progress: Progress,
    bench: Callable[[], AbstractContextManager[Bench]] | None = None,
    clock: Callable[[], float] = time.monotonic,
    heard: Callable[[Judged], None] = lambda _judged: None,
    workers: int = 1,
) -> AuditResult:
    """Attack a lock, and judge what is found.

    Every attack draws its random numbers from a seed of its own, so that figures do not depend on the number of
    workers. Their last digits may: torch adds up in another order with another number of threads, and a worker has one.

    Args:
        case: The lock, and data.
        plan: What to run.
        progress: Hears about the steps.
        bench: Starts the servers that attacks on the service need; without it these are skipped.
        clock: Seconds, to measure durations with.
        heard: Hears about every attack that is judged.
        workers: How many processes carry out attacks, where `can_share` says that they can; with 1 it is this process
            alone. `worker_count` gives a number that cores and memory suffice for.
    """
    attacks = attacks_of(plan.suite, only=plan.only)
    with ExitStack() as stack:
        runner = _Runner(case, plan, progress, clock, stack, bench)
        runner.work_ahead(attacks, workers)
        judged = []
        for one in attacks:
            judged.append(judge(runner.finding(one), plan.policy, runner.own_model))
            heard(judged[-1])
        gate = None if plan.only else runner.gate()
        own = runner.own_network() if any(one.finding.attack.startswith("fine_tune/") for one in judged) else None
    first = case.images[:_SAMPLES]
    return AuditResult(
        judged=worst_first(judged),
        gate=gate,
        samples={one.finding.attack: runner.samples(one.finding.attack) for one in judged},
        truths={name: maps[:_SAMPLES] for name, maps in runner.truths.items()},
        keyless=explained(case.module, case.explainers, first),
        own=own,
    )


class _Runner:
    """One audit under way."""

    def __init__(
        self,
        case: Case,
        plan: AuditPlan,
        progress: Progress,
        clock: Callable[[], float],
        stack: ExitStack,
        bench: Callable[[], AbstractContextManager[Bench]] | None,
    ) -> None:
        self.case, self.plan, self.progress, self.clock = case, plan, progress, clock
        self.budget = plan.spent
        self.case = _trimmed(case, self.budget)
        self.truths = self.case.truths()
        self.folder = plan.out / "outcomes"
        make_folders(self.folder, mode=PRIVATE)
        self._stack, self._make_bench = stack, bench
        self._bench: Bench | None = None
        self._workers: Workers | None = None
        # What is measured hangs on these; another policy only judges anew.
        self.identity = _digest(
            {
                "keylock": __version__,
                "model": case.digest,
                "about": case.about,
                "seed": plan.seed,
                "budget": self.budget.as_dict(),
                "images": _digest_of(self.case.images),
                "own_images": _digest_of(self.case.own_images),
                "truths": {name: _digest_of(maps) for name, maps in self.truths.items()},
                "base": None
                if case.base is None
                else _digest_of(torch.cat([p.flatten() for p in case.base.parameters()])),
            }
        )
        self.own = OwnModels(
            fresh=case.fresh,
            explainers=case.explainers,
            own_images=self.case.own_images,
            own_labels=self.case.own_labels,
            images=self.case.images,
            truths=self.truths,
            folder=plan.out / "own-models",
            identity=self.identity,
            seed=plan.seed,
            progress=progress,
        )

    def own_model(self, finding: Finding, recovery: Recovery) -> float | None:
        """Return what a model of the attacker's own shows at the price of a finding."""
        price = self.own.price_of(finding.cost)
        if price is None:
            return None
        self._wait_for(price)
        return self.own.correlation(recovery.truth, price)

    def own_network(self) -> OwnNetwork:
        """Return a network of the attacker's own that is as accurate as the published one, or as near as it gets."""
        self._wait_for(_OWN_NETWORK)
        right = classes_of(self.case.module, self.case.images) == self.case.labels
        wanted = round(float(right.float().mean()), 5)
        budget = self.budget
        return self.own.as_accurate(wanted, self.case.labels, steps=budget.accurate_steps, batch=budget.batch)

    def finding(self, one: Attack) -> Finding:
        """Return what an attack found: as written down, by a worker, or by running it."""
        kept = self._kept(one)
        if kept is not None:
            return kept
        if one.goal is Goal.SERVICE and self._workers is not None:
            # It measures how long answers take.
            self._workers.finish()
        found = self._wait_for(one.name)
        if isinstance(found, Finding):
            return found
        begun = self.clock()
        try:
            finding, samples = self._run(one)
        except NotApplicableError as error:
            return Finding(
                attack=one.name, group=one.group, summary=one.summary, status="skipped", reason=error.message
            )
        except KeylockError as error:
            # Neither is written down, so that the next run tries again.
            return Finding(attack=one.name, group=one.group, summary=one.summary, status="error", reason=error.message)
        cost = {**finding.cost, "seconds": round(self.clock() - begun, 2)}
        finding = finding.model_copy(update={"cost": cost})
        with storing(self._place(one.name, "safetensors"), advice=_GOING_ON) as unfinished:
            save_file(samples, unfinished)
        _write(self._place(one.name, "json"), self.identity, finding.model_dump(mode="json"))
        return finding

    def work_ahead(self, attacks: Sequence[Attack], workers: int) -> None:
        """Have other processes do what can be done apart, where there are to be several.

        Attacks on the service are left to this process: they time answers, so that they are to be alone.
        """
        tasks = [one.name for one in attacks if one.goal is not Goal.SERVICE and self._kept(one) is None]
        # These take long and are needed last. Begun midway, they neither hold up the first judgements nor the end.
        later = [_OWN_NETWORK] if any(name.startswith("fine_tune/") for name in tasks) else []
        if not self.plan.only and _read(self._place(_GATE, "json"), self.identity) is None:
            later.append(_GATE)
        tasks[len(tasks) // 2 : len(tasks) // 2] = later
        if min(workers, len(tasks)) < 2 or not can_share(self.case):
            return
        self._workers = self._stack.enter_context(
            Workers(self._do, min(workers, len(tasks)), self.progress, then=self._follow_up)
        )
        self._workers.start(tasks)

    def _do(self, task: str | Price, progress: Progress) -> Finding | bool:
        """Do a task in another process. What is written down is enough; a finding may not be."""
        self._workers = None
        self.progress = self.own.progress = progress
        if isinstance(task, Price):
            self.own.maps(task)
        elif task == _GATE:
            self.gate()
        elif task == _OWN_NETWORK:
            self.own_network()
        else:
            return self.finding(ATTACKS[task])
        return True

    def _follow_up(self, _task: str | Price, found: Finding | bool) -> None:
        """Have the own model trained that an attack is held against."""
        price = self.own.price_of(found.cost) if isinstance(found, Finding) else None
        if price is not None and self._workers is not None:
            self._workers.submit(price, soon=True)

    def _wait_for(self, task: str | Price) -> object | None:
        return None if self._workers is None else self._workers.take(task)

    def _kept(self, one: Attack) -> Finding | None:
        """Return what is written down of an attack."""
        kept = _read(self._place(one.name, "json"), self.identity)
        whole = kept is not None and self._place(one.name, "safetensors").is_file()
        return Finding.model_validate(kept) if whole else None

    def gate(self) -> dict[str, Any] | None:
        """Return the gate curve."""
        self._wait_for(_GATE)
        place = self._place(_GATE, "json")
        kept = _read(place, self.identity)
        if kept is not None:
            return kept
        explainers = tuple(self.case.explainers.values())
        self.progress.start(_GATE, len(explainers) * POINTS, 0)
        curve = gate_curve(
            self.case.opened,
            self.case.reference,
            self.case.key,
            explainers,
            self.case.images[: self.budget.gate_images],
            generator=torch.Generator().manual_seed(self.plan.seed),
            on_point=lambda _point: self.progress.advance({}),
        ).as_dict()
        self.progress.finish()
        _write(place, self.identity, curve)
        # As it comes back from the file: tuples are lists there.
        return _read(place, self.identity)

    def samples(self, name: str) -> dict[str, Tensor]:
        """Return the recovered maps of the first images, by label."""
        place = self._place(name, "safetensors")
        return load_file(place) if place.is_file() else {}

    def _place(self, name: str, suffix: str) -> Path:
        return self.folder / f"{name.replace('/', '--')}.{suffix}"

    def _run(self, one: Attack) -> tuple[Finding, dict[str, Tensor]]:
        steps = Steps(one.name, self.progress)
        generator = torch.Generator().manual_seed(_seed_of(one.name, self.plan.seed))
        state = generator.get_state()
        if one.goal is Goal.SERVICE:
            return self._found(one, one.run(self._served(), self.budget, generator, steps)), {}
        view = self.case.view(_VIEWS[one.knowledge])
        outcome = _noting(view.oracle, one.run(view, self.budget, generator, steps))
        if one.goal is Goal.DETECT and outcome.scores is not None:
            # The same detector, with the same random numbers, on a model that is not locked.
            generator.set_state(state)
            control = one.run(self.case.as_reference().view(_VIEWS[one.knowledge]), self.budget, generator, steps)
            assert control.scores is not None  # noqa: S101 - the same function gave some before
            finding = self._found(one, outcome)
            notes = {**finding.notes, **{f"{name} (reference)": value for name, value in control.notes.items()}}
            told = round(separation(outcome.scores, control.scores), 5)
            return finding.model_copy(update={"separation": told, "notes": notes}), {}
        samples = {label: maps[:_SAMPLES].float().nan_to_num().contiguous() for label, maps in outcome.maps.items()}
        return self._found(one, outcome), samples

    def _served(self) -> Bench:
        if self._make_bench is None:
            raise NotApplicableError("there is no bundle file to serve: give one to audit the service")
        if self._bench is None:
            self._bench = self._stack.enter_context(self._make_bench())
        return self._bench

    def _found(self, one: Attack, outcome: Outcome) -> Finding:
        methods = {
            label: explained(self.case.reference, {label: method}, self.case.images[: len(outcome.maps[label])])[label]
            for label, method in outcome.methods.items()
        }
        accuracy = None
        if outcome.predictions is not None:
            right = outcome.predictions == self.case.labels[: len(outcome.predictions)]
            accuracy = round(float(right.float().mean()), 5)
        return Finding(
            attack=one.name,
            group=one.group,
            summary=one.summary,
            recoveries=recoveries(outcome.maps, self.truths, methods),
            accuracy=accuracy,
            cost=outcome.cost.as_dict(),
            curve=tuple(Point(queries=at.queries, pcc=self._leakage(at.maps)) for at in outcome.snapshots),
            checks=tuple(CheckRecord(name=check.name, good=check.good, value=check.value) for check in outcome.checks),
            notes=dict(outcome.notes),
        )

    def _leakage(self, maps: Mapping[str, Tensor]) -> float:
        found = [
            abs(one.pcc[0])
            for name, truth in self.truths.items()
            for one in recoveries({name: maps[name]}, {name: truth}, {})
        ]
        return round(max(found, default=0.0), 5)


def _noting(oracle: Oracle, outcome: Outcome) -> Outcome:
    """Return an outcome that says what was refused."""
    if not oracle.tally.labels and not oracle.tally.refused:
        return outcome
    return replace(outcome, notes={**oracle.tally.notes(), **outcome.notes})


def _trimmed(case: Case, budget: Budget) -> Case:
    """Return the case with as much data as the budget has."""
    return replace(
        case,
        images=case.images[: budget.images],
        labels=case.labels[: budget.images],
        own_images=case.own_images[: budget.own_images],
        own_labels=case.own_labels[: budget.own_images],
        pair_images=case.pair_images[: budget.pairs],
    )


def _seed_of(name: str, seed: int) -> int:
    """Return a seed of an attack's own, so that leaving one out changes no other."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")


def _digest(content: object) -> str:
    return hashlib.sha256(canonical_json(content)).hexdigest()


def _digest_of(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def _read(place: Path, identity: str) -> dict[str, Any] | None:
    """Return what is written down, where it belongs to this audit and is whole."""
    try:
        content = json.loads(place.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("identity") != identity:
        return None
    found = content.get("found")
    return found if isinstance(found, dict) else None


def _write(place: Path, identity: str, found: dict[str, Any]) -> None:
    with storing(place, advice=_GOING_ON) as unfinished:
        unfinished.write_text(json.dumps({"identity": identity, "found": found}, indent=1, allow_nan=False), "utf-8")
