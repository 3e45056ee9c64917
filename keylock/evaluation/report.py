"""What an evaluation found: figures, the gate, which explainers, and its JSON form."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from keylock.bundle.manifest import Figure
from keylock.evaluation.gate import GateCurve

__all__ = ["EvaluatedExplainer", "Evaluation"]


@dataclass(frozen=True)
class EvaluatedExplainer:
    """An explainer that was measured.

    Attributes:
        label: What its figures are called.
        name: The name in the registry.
        parameters: What it was made with.
        locked: Whether the model was locked against it.
    """

    label: str
    name: str
    parameters: dict[str, Any]
    locked: bool


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that was measured about a lock.

    Attributes:
        model: Name of the model.
        model_digest: Identity of the model.
        about: On what it was measured.
        explainers: In the order they were measured.
        skipped: Explainers that the architecture does not take, and why.
        figures: By names that docs/evaluation.md explains.
        gate: How sharply the lock opens, where it was measured.
    """

    model: str
    model_digest: str
    about: str
    explainers: tuple[EvaluatedExplainer, ...]
    figures: tuple[Figure, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    gate: GateCurve | None = None

    def values(self) -> dict[str, Figure]:
        """Return the figures by name."""
        return {figure.name: figure for figure in self.figures}

    def labels(self, *, locked: bool | None = None) -> Iterable[str]:
        """Return the labels of the explainers: all, the locked ones, or the others."""
        return [entry.label for entry in self.explainers if locked is None or entry.locked == locked]

    def as_dict(self) -> dict[str, Any]:
        """Return what a JSON file keeps."""
        return {
            "model": self.model,
            "model_digest": self.model_digest,
            "about": self.about,
            "explainers": [asdict(entry) for entry in self.explainers],
            "skipped": dict(self.skipped),
            "figures": [figure.model_dump(mode="json") for figure in self.figures],
            "gate": None if self.gate is None else self.gate.as_dict(),
        }
