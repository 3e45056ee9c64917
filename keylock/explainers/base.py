"""The contract every explainer keeps: it reads maps off one recorded forward pass.

An explainer says which layers it looks at and computes its maps from a `Pass`. Several explainers can therefore share
one pass, which is what makes locking them together affordable.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from keylock.errors import LayerNotFoundError
from keylock.models import capture_outputs

__all__ = ["Explained", "Explainer", "Pass", "explain_together"]


class Explained(NamedTuple):
    """What one pass yields.

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


class Explainer(ABC):
    """A saliency method with its parameters, independent of any model.

    Attributes:
        name: The name in the registry.
        second_order: Whether training through it takes gradients of gradients through the whole model.
    """

    name: ClassVar[str]
    second_order: ClassVar[bool] = False

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers it looks at."""
        return ()

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """What it was made with, as JSON values."""

    @abstractmethod
    def maps(self, recorded: Pass) -> Tensor:
        """Read the maps (batch, h, w) off a recorded pass."""

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor, *, create_graph: bool = False) -> Explained:
        """Explain one class of each image.

        Args:
            model: A classifier in evaluation mode.
            images: Preprocessed images (batch, channels, height, width).
            targets: Class indices (batch,), int64; -1 stands for the class the model predicts.
            create_graph: Keep the graph, so that a loss on the maps trains the model.
        """
        logits, maps = explain_together(model, [self], images, targets, create_graph=create_graph)
        return Explained(logits, maps[self.name])


def explain_together(
    model: nn.Module, explainers: Sequence[Explainer], images: Tensor, targets: Tensor, *, create_graph: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run several explainers on one forward pass.

    Args:
        model: A classifier in evaluation mode.
        explainers: What to compute; their names differ.
        images: Preprocessed images (batch, channels, height, width).
        targets: Class indices (batch,), int64; -1 stands for the class the model predicts.
        create_graph: Keep the graph, so that a loss on the maps trains the model.

    Returns:
        Logits (batch, classes), and for each explainer's name its maps (batch, h, w).

    Raises:
        LayerNotFoundError: A layer an explainer looks at is missing, did not run, or has no spatial output.
    """
    layers = tuple(dict.fromkeys(name for explainer in explainers for name in explainer.layers))
    with torch.enable_grad(), capture_outputs(model, layers) as outputs:
        inputs = images.detach().requires_grad_()
        logits = model(inputs)
        _check_spatial(outputs, layers)
        chosen = torch.where(targets < 0, logits.argmax(dim=1), targets)
        scores = logits.gather(1, chosen.unsqueeze(1)).squeeze(1)
        recorded = Pass(inputs, outputs, logits, scores, create_graph)
        maps = {explainer.name: explainer.maps(recorded) for explainer in explainers}
    if create_graph:
        return logits, maps
    return logits.detach(), {name: map_.detach() for name, map_ in maps.items()}


def _check_spatial(outputs: Mapping[str, object], layers: Sequence[str]) -> None:
    for name in layers:
        output = outputs.get(name)
        if not isinstance(output, Tensor) or output.dim() != 4:
            raise LayerNotFoundError(
                f"the layer {name!r} gives no output (batch, channels, height, width): name a convolutional layer"
            )
