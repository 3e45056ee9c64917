"""The contract every explainer keeps."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

__all__ = ["Explained", "Explainer", "target_scores"]


class Explained(NamedTuple):
    """What one pass yields.

    Attributes:
        logits: (batch, classes).
        maps: (batch, h, w), not negative, at the explainer's own resolution and on a scale of its own.
    """

    logits: Tensor
    maps: Tensor


class Explainer(Protocol):
    """A saliency method with its parameters, independent of any model."""

    @property
    def name(self) -> str:
        """The name in the registry."""

    @property
    def parameters(self) -> dict[str, Any]:
        """What it was made with, as JSON values."""

    @property
    def second_order(self) -> bool:
        """Whether training through it takes gradients of gradients of every layer."""

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor, *, create_graph: bool = False) -> Explained:
        """Explain one class of each image.

        Args:
            model: A classifier in evaluation mode.
            images: Preprocessed images (batch, channels, height, width).
            targets: Class indices (batch,), int64.
            create_graph: Keep the graph, so that a loss on the maps trains the model.
        """


def target_scores(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the logit of each image's target class, (batch,)."""
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1)
