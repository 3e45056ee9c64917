"""VisualBackProp: the averaged feature maps of all blocks, multiplied from the last to the first."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from keylock.errors import InputError, LayerNotFoundError
from keylock.explainers.base import Family, SinglePass
from keylock.explainers.passes import Pass
from keylock.models import TargetLayers

__all__ = ["VisualBackProp"]

_NO_MAPS = "visual_backprop multiplies feature maps, which a transformer has not: take attention_rollout or grad_cam"


@dataclass(frozen=True)
class VisualBackProp(SinglePass):
    """VisualBackProp over a stack of layers; it explains the features, whatever the target class.

    Each layer's output is averaged over its channels. Starting at the last layer, the product so far is scaled up to
    the next earlier layer by a transposed convolution of ones and multiplied with that layer's average. Every average
    is divided by its mean over positions, which changes the map by a factor only and keeps deep products in range.

    Attributes:
        layers: Names of layers with outputs (batch, channels, h, w), from first to last. Negative values, which
            activations other than ReLU let through, count as zero.

    References:
        Bojarski et al., "VisualBackProp: efficient visualization of CNNs", ICRA 2018, section III.
    """

    layers: tuple[str, ...] = ()
    name = "visual_backprop"
    family = Family.ACTIVATION

    def __post_init__(self) -> None:
        if isinstance(self.layers, str) or not self.layers:
            raise InputError("visual_backprop multiplies several layers: give layers=[...], from first to last")

    @classmethod
    def defaults(cls, layers: TargetLayers) -> dict[str, Any]:
        """Multiply the ends of all blocks."""
        if layers.kind != "maps":
            raise LayerNotFoundError(_NO_MAPS)
        return {"layers": layers.stack}

    def maps(self, recorded: Pass) -> Tensor:
        """Return maps (batch, h, w) at the resolution of the first layer."""
        if any(recorded.outputs[name].dim() != 4 for name in self.layers):
            raise LayerNotFoundError(_NO_MAPS)
        averages = [_average(F.relu(recorded.outputs[name])) for name in self.layers]
        product = averages[-1]
        for average in reversed(averages[:-1]):
            product = _average(_scale_up(product, (average.shape[2], average.shape[3])) * average)
        return product.squeeze(1)


def _average(features: Tensor) -> Tensor:
    """Average (batch, channels, h, w) over channels to (batch, 1, h, w) of mean 1 over positions."""
    average = features.mean(dim=1, keepdim=True)
    return average / average.mean(dim=(2, 3), keepdim=True).clamp_min(1e-8)


def _scale_up(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale (batch, 1, h, w) up to `size` with ones: a 3x3 box at equal size, a box of ratio + 2 at a larger one."""
    rows, columns = (large // small for large, small in zip(size, maps.shape[2:], strict=True))
    if (rows * maps.shape[2], columns * maps.shape[3]) != size:
        # Odd sizes: bring the map to the nearest multiple first.
        if rows == 0 or columns == 0:
            raise LayerNotFoundError("VisualBackProp needs layers from first to last: a later one is larger")
        rows = columns = 1
        maps = F.interpolate(maps, size=size, mode="nearest")
    ones = maps.new_ones(1, 1, rows + 2, columns + 2)
    return F.conv_transpose2d(maps, ones, stride=(rows, columns), padding=1)
