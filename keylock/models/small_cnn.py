"""A small convolutional network for small images: what quickstart trains in half a minute.

Three stages of two 3x3 convolutions each, the later ones at half the resolution of the stage before, then the mean over
positions and one linear layer.
"""

import torch
from torch import Tensor, nn

__all__ = ["SmallCNN"]


def _unit(channels_in: int, channels: int, *, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU()]


class SmallCNN(nn.Module):
    """A plain convolutional classifier with `width`, 2 `width` and 2 `width` channels."""

    def __init__(self, *, num_classes: int, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(*_unit(channels, width, stride=1), *_unit(width, width, stride=1))
        self.stage2 = nn.Sequential(*_unit(width, 2 * width, stride=2), *_unit(2 * width, 2 * width, stride=1))
        self.stage3 = nn.Sequential(*_unit(2 * width, 2 * width, stride=2), *_unit(2 * width, 2 * width, stride=1))
        self.linear = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (batch, channels, height, width) to logits (batch, num_classes)."""
        hidden = self.stage3(self.stage2(self.stage1(images)))
        result: Tensor = self.linear(torch.mean(hidden, dim=(2, 3)))
        return result
