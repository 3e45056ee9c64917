"""What an audit writes down, as it stands in the report's JSON."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["AuditRecord", "CheckRecord", "Finding", "Judged", "OwnNetwork", "Point", "Recovery", "Verdict"]

Interval = tuple[float, float, float]
"""A mean with the ends of its 95 % interval over images."""

Verdict = Literal["fail", "pass", "measured", "skipped", "error"]
"""`measured`: nothing is promised; `skipped`: it does not apply; `error`: the attack could not be carried out."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Recovery(_Entry):
    """How close one kind of recovered map came to one kind of true map.

    Attributes:
        label: What was recovered.
        truth: What it is compared with.
        pcc: Correlation with it.
        top_overlap: Share of its top 10 % of the pixels that were found.
        chance: Correlation of true maps of two different images.
        chance_top_overlap: The same for the overlap.
        images: How many were compared.
    """

    label: str
    truth: str
    pcc: Interval
    top_overlap: Interval
    chance: float
    chance_top_overlap: float
    images: int

    @property
    def found(self) -> float:
        """What the attacker has: a map that is turned upside down tells as much."""
        return abs(self.pcc[0])


class Point(_Entry):
    """A place on the curve of queries against leakage.

    Attributes:
        queries: Images answered.
        pcc: The largest correlation with a true map, over explainers.
    """

    queries: int
    pcc: float


class CheckRecord(_Entry):
    """One thing that was looked at in the running service; see `keylock.audit.contract.Check`."""

    name: str
    good: bool | None
    value: str


class Finding(_Entry):
    """What one attack found, before anything is held against a policy.

    Attributes:
        attack: Its name.
        group: T0, T1, T2, detection or service.
        summary: What it did.
        status: `done`, or why it was not.
        reason: In words, where it was not.
        recoveries: How close it came.
        accuracy: Of the attacked model, where it changed one.
        cost: What it took.
        curve: Leakage on the way.
        separation: Of an attack that detects: probability that its score is larger for the lock than for the reference.
        checks: Of an attack on the service.
        notes: What else is worth knowing.
    """

    attack: str
    group: str
    summary: str
    status: Literal["done", "skipped", "error"] = "done"
    reason: str = ""
    recoveries: tuple[Recovery, ...] = ()
    accuracy: float | None = None
    cost: dict[str, float | int] = {}
    curve: tuple[Point, ...] = ()
    separation: float | None = None
    checks: tuple[CheckRecord, ...] = ()
    notes: dict[str, float | int | str] = {}


class Judged(_Entry):
    """A finding, judged.

    Attributes:
        finding: What was found.
        verdict: By the policy.
        worst: The place in `finding.recoveries` of the one that counts; None where there is none.
        own: What a model of the attacker's own shows at the same price, as a correlation; chance where that is more.
        advantage: What the attack found beyond that: the leak advantage.
        limit: In words, what was allowed.
    """

    finding: Finding
    verdict: Verdict
    worst: Annotated[int, Field(ge=0)] | None = None
    own: float | None = None
    advantage: float | None = None
    limit: str = ""

    @property
    def recovery(self) -> Recovery | None:
        """The recovery that counts."""
        return None if self.worst is None else self.finding.recoveries[self.worst]


class OwnNetwork(_Entry):
    """A network of the attacker's own, trained from scratch until it is as accurate as the published one.

    Attributes:
        accuracy: Share of the test images that it is right on.
        wanted: The same of the published network; more than `accuracy` where the budget did not suffice.
        images: Labelled images that it was trained on.
        steps: Gradient steps.
        recoveries: How close its maps come to the true ones, for each explainer.
    """

    accuracy: float
    wanted: float
    images: int
    steps: int
    recoveries: tuple[Recovery, ...]


class AuditRecord(_Entry):
    """A whole audit.

    Attributes:
        format: Of this document.
        model: Name of the model.
        model_digest: Identity of the model.
        lock: What kind of lock it has.
        created: When the report was made.
        suite: Which attacks ran.
        seed: Of everything drawn at random.
        about: On what it was measured.
        budget: What every attack could spend.
        policy: What was promised.
        versions: Of the packages, by name.
        judged: Every attack, the worst first.
        gate: The gate curve, as `keylock.evaluation.GateCurve.as_dict` gives it.
        baseline: The same attacks on a baseline lock, where that was asked for.
        own: A network of the attacker's own to hold fine-tuning against, where that was tried.
    """

    format: Literal["keylock-audit/1"] = "keylock-audit/1"
    model: str
    model_digest: str
    lock: str
    created: datetime
    suite: str
    seed: int
    about: str
    budget: dict[str, int]
    policy: dict[str, Any]
    versions: dict[str, str]
    judged: tuple[Judged, ...]
    gate: dict[str, Any] | None = None
    baseline: tuple[Judged, ...] = ()
    own: OwnNetwork | None = None

    def count(self, verdict: Verdict) -> int:
        """Return how many attacks got a verdict."""
        return sum(one.verdict == verdict for one in self.judged)
