"""What a model is and what it takes an image for, as frozen values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from keylock import imaging
from keylock.text.printable import printable
from keylock_client import _display as display
from keylock_client._limits import RequestLimits

__all__ = ["ClassScore", "Explainer", "Model", "ModelInfo", "Prediction"]


@dataclass(frozen=True, slots=True)
class ClassScore:
    """A class and how probable it is.

    Attributes:
        label: Name of the class.
        index: Its place among the classes of the model.
        probability: 0 to 1.
    """

    label: str
    index: int
    probability: float

    def __repr__(self) -> str:
        return f"ClassScore({self.label!r}, {self.probability:.4f})"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model takes an image for.

    Attributes:
        label: Name of the most probable class.
        index: Its place among the classes of the model.
        probability: How probable it is, 0 to 1.
        top: The most probable classes, best first, five at most.
        logits: The output of the model, one number for each class.
        keyed: Whether it was made with the key. If not, it is the public one, which everybody gets for this image.
    """

    label: str
    index: int
    probability: float
    top: tuple[ClassScore, ...]
    logits: tuple[float, ...] = field(repr=False)
    keyed: bool = False

    def __repr__(self) -> str:
        return f"Prediction({self.label!r}, {self.probability:.4f}{', keyed' if self.keyed else ''})"

    def _repr_html_(self) -> str:
        """Show the most probable classes in a notebook."""
        return display.prediction_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as plain values, ready for JSON."""
        return {
            "label": self.label,
            "index": self.index,
            "probability": self.probability,
            "top": [asdict(one) for one in self.top],
            "logits": list(self.logits),
            "keyed": self.keyed,
        }


@dataclass(frozen=True, slots=True)
class Explainer:
    """The saliency method behind a map.

    Attributes:
        name: For example `grad_cam`.
        parameters: Those really used.
    """

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Model:
    """The model that answered.

    Attributes:
        name: The vendor's name for it.
        digest: `sha256:` and the digest of its weights and graphs.
    """

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The served model, as the server describes it to everybody.

    Attributes:
        model: Name and digest.
        classes: Names of the classes, in the order of the logits.
        preprocessing: How images become inputs; call it on uint8 pixels to get the tensor the model sees.
        explainers: The saliency methods on offer; the first is used when none is asked for.
        key_available: Whether a license leads to true maps on this server.
        limits: What the server takes of one request.
        signs_receipts: Whether every answer that is charged has a receipt.
        computed_in: By the names of explainers, the numbers and the runtime they are computed in.
    """

    model: Model
    classes: tuple[str, ...]
    preprocessing: "imaging.Preprocessing"
    explainers: tuple[Explainer, ...]
    key_available: bool
    limits: RequestLimits = field(default_factory=RequestLimits)
    signs_receipts: bool = False
    computed_in: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        names = printable(", ".join(one.name for one in self.explainers))
        maps = "keyed maps with a license" if self.key_available else "decoys only"
        model = f"{self.model.name!r} {printable(self.model.digest[:19])}"
        return f"<ModelInfo {model}, {len(self.classes)} classes, {names}, {maps}>"
