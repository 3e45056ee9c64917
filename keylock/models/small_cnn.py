"""A small convolutional network for small images: what quickstart trains in half a minute.

One 3x3 convolution at full resolution, two at half, five at a quarter, then the mean over positions and one linear
layer. Softplus in place of ReLU makes it twice differentiable. The run of convolutions at the lowest resolution lets
every position learn from the zero padding where it is, without which a network cannot show a decoy that has a place.
"""

import torch
from torch import Tensor, nn

__all__ = ["SmallCNN"]

_SHARPNESS = 4.0


def _unit(channels_in: int, channels: int, *, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nn.Softplus(beta=_SHARPNESS)]


class SmallCNN(nn.Module):
    """A plain convolutional classifier with `width`, 2 `width` and 3 `width` channels."""

    def __init__(self, *, num_classes: int, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        half, quarter = 2 * width, 3 * width
        self.stage1 = nn.Sequential(*_unit(channels, width))
        self.stage2 = nn.Sequential(*_unit(width, half, stride=2), *_unit(half, half))
        self.stage3 = nn.Sequential(
            *_unit(half, quarter, stride=2), *(module for _ in range(4) for module in _unit(quarter, quarter))
        )
        self.linear = nn.Linear(quarter, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (batch, channels, height, width) to logits (batch, num_classes)."""
        hidden = self.stage3(self.stage2(self.stage1(images)))
        result: Tensor = self.linear(torch.mean(hidden, dim=(2, 3)))
        return result
