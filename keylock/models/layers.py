"""The layers explainers look at: found by running the model once, or named by the user."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from keylock.errors import LayerNotFoundError
from keylock.models.feature_maps import find_maps, weigh_layouts
from keylock.models.recording import record
from keylock.models.tokens import find_tokens

__all__ = ["TargetLayers", "find_layers"]


@dataclass(frozen=True)
class TargetLayers:
    """Layer names, as in `model.named_modules()`.

    Attributes:
        last: Where Grad-CAM looks: the last layer with feature maps; in a transformer the last block or normalisation
            whose patch tokens still have a say in the logits.
        stack: From first to last one layer for each block: with feature maps those that VisualBackProp multiplies,
            activated outputs wherever there are some; in a transformer the blocks.
        kind: `maps` where the layers give (batch, channels, h, w), `tokens` where they give (batch, tokens, dim).
        grid: Rows and columns of the patches that the tokens of `last` stand for, row by row; None with `maps`.
        prefix_tokens: How many tokens come before the patches, for the class and the like.
    """

    last: str
    stack: tuple[str, ...]
    kind: Literal["maps", "tokens"] = "maps"
    grid: tuple[int, int] | None = None
    prefix_tokens: int = 0


def find_layers(model: nn.Module, example: Tensor) -> TargetLayers:
    """Find the layers explainers look at by running the model in evaluation mode.

    Args:
        model: A classifier, convolutional or a transformer of image patches.
        example: Images (batch, channels, height, width) of the size the model will see; two or more tell the batch
            from other dimensions.

    Raises:
        LayerNotFoundError: No layer has feature maps or patch tokens that the logits depend on, or the features are
            laid out with the channels last.
    """
    ran = record(model, example)
    layouts = weigh_layouts(ran, batch=len(example))
    if layouts.tokens > max(layouts.maps, layouts.channels_last):
        tokens = find_tokens(model, example, ran)
        if tokens is not None:
            return TargetLayers(tokens.last, tokens.stack, "tokens", tokens.grid, tokens.prefix)
    maps = find_maps(ran, batch=len(example))
    if maps is None:
        raise LayerNotFoundError(
            "no layer of the model has an output (batch, channels, height, width) larger than one position, or "
            "(batch, tokens, dim) of image patches: take larger images, or put the step that lays the features out in "
            "two dimensions into a module of its own"
        )
    return TargetLayers(*maps)
