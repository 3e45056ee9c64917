"""One run of a classifier for the explainers that look at it: what was asked, the answers, one recorded pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from keylock.explainers.tokens import lay_out_tokens

__all__ = ["Classifier", "Pass", "Run"]

Classifier = Callable[[Tensor], Any]
"""Maps preprocessed images (rows, channels, height, width) to logits (rows, classes), a tensor or a NumPy array: an
`nn.Module`, an ONNX session, a server's answers."""


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

    def gradient(self, of: Tensor, scores: Tensor | None = None) -> Tensor:
        """Return the gradient of each image's score with respect to an input or a layer's output, in its shape.

        Args:
            of: The input or output.
            scores: What to take the gradient of (batch,), by default the logits of the target classes.
        """
        total = (self.scores if scores is None else scores).sum()
        (gradient,) = torch.autograd.grad(
            total, of, create_graph=self.create_graph, retain_graph=True, materialize_grads=True
        )
        return gradient

    def at(self, layer: str, scores: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return a layer's features and the gradient of scores with respect to them, each (batch, channels, h, w).

        The tokens of a transformer are laid out in the grid of their patches, without class tokens.

        Args:
            layer: Its name.
            scores: What to take the gradient of (batch,), by default the logits of the target classes.
        """
        features = self.outputs[layer]
        gradient = self.gradient(features, scores)
        if features.dim() == 4:
            return features, gradient
        size = (self.images.shape[2], self.images.shape[3])
        return lay_out_tokens(features, size), lay_out_tokens(gradient, size)


@dataclass(frozen=True, eq=False)
class Run:
    """What explainers are asked together.

    Attributes:
        model: A classifier in evaluation mode.
        images: Preprocessed images (batch, channels, height, width), detached.
        targets: Class indices (batch,), none negative.
        logits: Those of the images (batch, classes).
        create_graph: Whether a loss on the maps is going to train the model.
        generator: What random numbers come from; None draws the same ones every time, by the seed.
        shared: The forward pass that all explainers share which read one; None where all need predictions alone.
    """

    model: Classifier
    images: Tensor
    targets: Tensor
    logits: Tensor
    create_graph: bool = False
    generator: torch.Generator | None = None
    shared: Pass | None = None

    @property
    def network(self) -> nn.Module:
        """The model, for explainers that look into it."""
        assert isinstance(self.model, nn.Module), "checked before the run"  # noqa: S101
        return self.model

    @property
    def recorded(self) -> Pass:
        """The shared pass, for explainers that read it."""
        assert self.shared is not None, "recorded for every explainer that looks into the network"  # noqa: S101
        return self.shared

    def gradient(self, images: Tensor) -> Tensor:
        """Return the gradient of the target logit of each of these images with respect to it, in their shape."""
        inputs = images.detach().requires_grad_()
        scores = self.network(inputs).gather(1, self.targets.unsqueeze(1))
        (gradient,) = torch.autograd.grad(scores.sum(), inputs, create_graph=self.create_graph)
        return gradient
