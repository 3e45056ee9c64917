"""The contract every explainer keeps: a classifier, images and target classes in; maps that are not negative out.

    Explainer
    ├── SinglePass   reads its maps off one recorded forward pass, which any number of them share
    ├── MultiPass    runs the network itself: several times, or with rules of its own for the way back
    └── BlackBox     needs predictions alone, so that it explains any function from images to logits

Sharing the pass is what makes locking several explainers together affordable.
"""

from abc import ABC, abstractmethod
from dataclasses import fields
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from keylock.explainers.passes import Classifier, Pass, Run
from keylock.explainers.running import explain_many
from keylock.models import TargetLayers

__all__ = ["Explained", "Explainer", "Family", "MultiPass", "SinglePass"]


class Family(StrEnum):
    """What a method reads: class activations, input gradients, features alone, predictions alone, attention."""

    CAM = "cam"
    GRADIENT = "gradient"
    ACTIVATION = "activation"
    PERTURBATION = "perturbation"
    ATTENTION = "attention"


class Explained(NamedTuple):
    """What an explanation yields.

    Attributes:
        logits: (batch, classes).
        maps: (batch, h, w), not negative, at the explainer's own resolution and on a scale of its own.
    """

    logits: Tensor
    maps: Tensor


class Explainer(ABC):
    """A saliency method with its parameters, independent of any model. Every subclass is a frozen dataclass.

    Attributes:
        name: The name in the registry.
        family: What it reads.
        second_order: Whether training through it takes gradients of gradients through the whole model.
        differentiable: Whether a loss on its maps can train the model, so that it can be locked.
        compiled: Whether one ONNX graph computes it; the others run in torch.
        looks_inside: Whether it needs the network, and not its predictions alone.
    """

    name: ClassVar[str]
    family: ClassVar[Family]
    second_order: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    compiled: ClassVar[bool] = True
    looks_inside: ClassVar[bool] = True

    @classmethod
    def defaults(cls, layers: TargetLayers) -> dict[str, Any]:
        """Return the parameters to make it with for a model of these layers.

        Raises:
            LayerNotFoundError: The model has not the layers that the method reads.
        """
        return {}

    @property
    def parameters(self) -> dict[str, Any]:
        """What it was made with, as JSON values."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}  # type: ignore[arg-type]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose outputs it reads off the shared pass."""
        return ()

    @abstractmethod
    def maps_in(self, run: Run) -> Tensor:
        """Return the maps (batch, h, w), none negative; the model is left as it was."""

    def explain(
        self,
        model: Classifier,
        images: Tensor,
        targets: Tensor,
        *,
        create_graph: bool = False,
        generator: torch.Generator | None = None,
    ) -> Explained:
        """Explain one class of each image; see `explain_many`."""
        logits, maps = explain_many(model, [self], images, targets, create_graph=create_graph, generator=generator)
        return Explained(logits, maps[self.name])


class SinglePass(Explainer):
    """Reads its maps off one recorded pass."""

    @abstractmethod
    def maps(self, recorded: Pass) -> Tensor:
        """Read the maps (batch, h, w) off a recorded pass."""

    def maps_in(self, run: Run) -> Tensor:
        """Read the maps (batch, h, w) off the pass that is shared."""
        return self.maps(run.recorded)


class MultiPass(Explainer):
    """Runs the network itself."""
