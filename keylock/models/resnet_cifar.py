"""The CIFAR residual networks: 6n + 2 layers, three stages of 16, 32 and 64 channels.

The shortcuts carry no weights ("option A"): where a stage halves the resolution, the shortcut takes every second pixel
and pads the missing channels with zeros, half before and half after. The names of the modules (`conv1`, `layer1.0.bn2`,
`linear`, ...) are those of the weights in common circulation, so that such weights load without renaming.

References:
    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ResNetCifar"]


class _Block(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut."""

    def __init__(self, channels_in: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.stride = stride
        self.padding = (channels - channels_in) // 2

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (batch, channels_in, h, w) to (batch, channels, h / stride, w / stride)."""
        shortcut = inputs
        if self.stride != 1 or self.padding:
            shortcut = inputs[:, :, :: self.stride, :: self.stride]
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        hidden = self.relu1(self.bn1(self.conv1(inputs)))
        result: Tensor = self.relu2(self.bn2(self.conv2(hidden)) + shortcut)
        return result


class ResNetCifar(nn.Module):
    """A residual network of `depth` = 6n + 2 layers for small images."""

    def __init__(self, *, num_classes: int, depth: int = 20, channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(channels_in: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
        first = _Block(channels_in, channels, stride=stride)
        return nn.Sequential(first, *(_Block(channels, channels, stride=1) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (batch, channels, height, width) to logits (batch, num_classes)."""
        hidden = self.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        result: Tensor = self.linear(torch.mean(hidden, dim=(2, 3)))
        return result
