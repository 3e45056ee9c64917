"""torchvision's ResNet-18 and MobileNetV2 for images of about 32 pixels, which their own first layers shrink too fast.

The networks are torchvision's own but for the strides, so the names of their weights are too.

References:
    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2 (the 3x3 first layer
    without pooling).
    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2 (the stages).
"""

from typing import cast

from torch import nn

__all__ = ["mobilenet_v2_cifar", "resnet18_cifar"]

# Expansion, channels, blocks, stride of each stage; the second stage has stride 2 in the original.
_STAGES = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]


def resnet18_cifar(*, num_classes: int, channels: int = 3) -> nn.Module:
    """Build a ResNet-18 whose first layer is a 3x3 convolution of stride 1, with no pooling after it.

    Returns:
        A module that maps images (batch, channels, height, width) to logits (batch, num_classes); its last features
        have an eighth of the image's resolution.
    """
    from torchvision.models import resnet18

    model: nn.Module = resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def mobilenet_v2_cifar(*, num_classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """Build a MobileNetV2 with stride 1 in the first layer and in the second stage.

    Args:
        num_classes: Number of logits.
        channels: Channels of the input.
        width: Multiplies the numbers of channels.

    Returns:
        A module that maps images (batch, channels, height, width) to logits (batch, num_classes); its last features
        have an eighth of the image's resolution.
    """
    from torchvision.models import MobileNetV2

    model: nn.Module = MobileNetV2(num_classes=num_classes, width_mult=width, inverted_residual_setting=_STAGES)
    first = cast(nn.Conv2d, model.get_submodule("features.0.0"))
    stem = nn.Conv2d(channels, first.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out")
    model.get_submodule("features.0").register_module("0", stem)
    return model
