"""The contract every explainer keeps: a classifier, images and target classes in; maps that are not negative out.

    Explainer
    ├── SinglePass        reads its maps off one recorded forward pass, which any number of them share
    ├── OwnPasses         runs the network itself: several times, or with rules of its own for the way back
    └── FromPredictions   needs predictions alone, so that it explains any function from images to logits

Sharing the pass is what makes locking several explainers together affordable.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from keylock.explainers.tokens import lay_out_tokens
from keylock.models import TargetLayers

__all__ = [
    "Asked",
    "Classifier",
    "Explained",
    "Explainer",
    "Family",
    "FromPredictions",
    "OwnPasses",
    "Pass",
    "SinglePass",
]

Classifier = Callable[[Tensor], Any]
"""Maps preprocessed images (rows, channels, height, width) to logits (rows, classes), a tensor or a NumPy array: an
`nn.Module`, an ONNX session, a server's answers."""


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


class Pass(NamedTuple):
    """One recorded forward pass.

    Attributes:
        images: The preprocessed images (batch, channels, height, width) that went in.
        outputs: Outputs of the layers that were asked for, by name.
        logits: (batch, classes).
        scores: The logit of each image's target class, (batch,).
        create_graph: Whether a loss on the maps is going to train the model.
    """

    images: Tensor
    outputs: dict[str, Tensor]
    logits: Tensor
    scores: Tensor
    create_graph: bool

    def gradient(self, of: Tensor) -> Tensor:
        """Return the gradient of each image's score with respect to an input or a layer's output, in its shape."""
        (gradient,) = torch.autograd.grad(
            self.scores.sum(), of, create_graph=self.create_graph, retain_graph=True, materialize_grads=True
        )
        return gradient

    def at(self, layer: str) -> tuple[Tensor, Tensor]:
        """Return a layer's features and the gradient of the score with respect to them, each (batch, channels, h, w).

        The tokens of a transformer are laid out in the grid of their patches, without class tokens.
        """
        features = self.outputs[layer]
        gradient = self.gradient(features)
        if features.dim() == 4:
            return features, gradient
        size = (self.images.shape[2], self.images.shape[3])
        return lay_out_tokens(features, size), lay_out_tokens(gradient, size)


class Asked(NamedTuple):
    """What an explainer that runs the network itself is asked.

    Attributes:
        model: A classifier in evaluation mode.
        images: Preprocessed images (batch, channels, height, width), detached.
        targets: Class indices (batch,), none negative.
        create_graph: Whether a loss on the maps is going to train the model.
        generator: What random numbers come from; None draws the same ones every time, by the seed.
    """

    model: nn.Module
    images: Tensor
    targets: Tensor
    create_graph: bool
    generator: torch.Generator | None

    def gradient(self, images: Tensor) -> Tensor:
        """Return the gradient of the target logit of each of these images with respect to it, in their shape."""
        inputs = images.detach().requires_grad_()
        scores = self.model(inputs).gather(1, self.targets.unsqueeze(1))
        (gradient,) = torch.autograd.grad(scores.sum(), inputs, create_graph=self.create_graph)
        return gradient


class Explainer(ABC):
    """A saliency method with its parameters, independent of any model. Every subclass is a frozen dataclass.

    Attributes:
        name: The name in the registry.
        family: What it reads.
        second_order: Whether training through it takes gradients of gradients through the whole model.
        differentiable: Whether a loss on its maps can train the model, so that it can be locked.
        compiled: Whether one ONNX graph computes it; the others run in torch.
    """

    name: ClassVar[str]
    family: ClassVar[Family]
    second_order: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    compiled: ClassVar[bool] = True

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

    def explain(
        self,
        model: Classifier,
        images: Tensor,
        targets: Tensor,
        *,
        create_graph: bool = False,
        generator: torch.Generator | None = None,
    ) -> Explained:
        """Explain one class of each image; see `explain_together`."""
        from keylock.explainers.together import explain_together

        logits, maps = explain_together(model, [self], images, targets, create_graph=create_graph, generator=generator)
        return Explained(logits, maps[self.name])


class SinglePass(Explainer):
    """Reads its maps off one recorded pass."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers it looks at."""
        return ()

    @abstractmethod
    def maps(self, recorded: Pass) -> Tensor:
        """Read the maps (batch, h, w) off a recorded pass."""


class OwnPasses(Explainer):
    """Runs the network itself."""

    @abstractmethod
    def maps_of(self, asked: Asked) -> Tensor:
        """Return the maps (batch, h, w); the model is left as it was."""


class FromPredictions(Explainer):
    """Needs predictions alone."""

    family = Family.PERTURBATION
    differentiable = False
    compiled = False

    @abstractmethod
    def maps_from(
        self, predict: Classifier, images: Tensor, targets: Tensor, *, generator: torch.Generator | None
    ) -> Tensor:
        """Return the maps (batch, height, width), float32.

        Args:
            predict: From preprocessed images to logits; it is called with a bounded number of rows at a time.
            images: Preprocessed images (batch, channels, height, width), detached.
            targets: Class indices (batch,), none negative.
            generator: What random numbers come from; None draws the same ones every time, by the seed.
        """
