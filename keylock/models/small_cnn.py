"""A small convolutional network for small images: what quickstart trains in half a minute.

One 3x3 convolution at full resolution, two at half, five at a quarter, then the mean over positions and one linear
layer. Four things make it easy to lock. Softplus in place of ReLU makes it twice differentiable. The convolutions
that halve the resolution are 4x4, so that every pixel is read equally often and gradients have no grid. The run of
convolutions at the lowest resolution lets every position learn from the zero padding where it is, without which a
network cannot show a decoy that has a place. And it has room: a narrower network is trained first and set into it,
and the filters left over, which no later layer listens to yet, are there for the lock.
"""

import torch
from torch import Tensor, nn

__all__ = ["SmallCNN"]

_WIDTH = 20
_TRAINED_WIDTH = 12
_SHARPNESS = 4.0
_ROOM_GAIN = 0.6
_ROOM_BIAS = -0.1


def _unit(channels_in: int, channels: int, *, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels, 2 + stride, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nn.Softplus(beta=_SHARPNESS)]


class SmallCNN(nn.Module):
    """A plain convolutional classifier with `width`, 2 `width` and 3 `width` channels."""

    def __init__(self, *, num_classes: int, channels: int = 3, width: int = _WIDTH) -> None:
        super().__init__()
        self.num_classes, self.channels, self.width = num_classes, channels, width
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

    def core(self) -> "SmallCNN":
        """Return the narrower, untrained network that is to be trained and set into this one."""
        width = min(_TRAINED_WIDTH, self.width)
        return SmallCNN(num_classes=self.num_classes, channels=self.channels, width=width)

    def take_core_(self, core: "SmallCNN", *, generator: torch.Generator) -> "SmallCNN":
        """Compute what a trained core computes, in place; the other filters keep random inputs and have no say.

        Args:
            core: A network of the same kind, not wider.
            generator: Draws the weights of the other filters.

        References:
            Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016: widening
            without changing the function. There filters are copied and shared out; here the new ones start silent.
        """
        with torch.no_grad():
            for ours, theirs in zip(self.modules(), core.modules(), strict=True):
                if isinstance(ours, nn.Conv2d) and isinstance(theirs, nn.Conv2d):
                    filters, inputs = theirs.weight.shape[:2]
                    size = _ROOM_GAIN * (2 / ours.weight[0].numel()) ** 0.5
                    ours.weight.copy_(size * torch.randn(ours.weight.shape, generator=generator))
                    ours.weight[:filters, inputs:] = 0
                    ours.weight[:filters, :inputs] = theirs.weight
                elif isinstance(ours, nn.BatchNorm2d) and isinstance(theirs, nn.BatchNorm2d):
                    nn.init.constant_(ours.bias, _ROOM_BIAS)
                    own = ours.state_dict()
                    for entry, value in theirs.state_dict().items():
                        if value.dim():
                            own[entry][: len(value)] = value
                elif isinstance(ours, nn.Linear) and isinstance(theirs, nn.Linear):
                    ours.weight.zero_()
                    ours.weight[:, : theirs.in_features] = theirs.weight
                    ours.bias.copy_(theirs.bias)
        return self

    def steady_filters(self) -> dict[str, int]:
        """Return for each convolution how many of its first filters came from a core; see `balance_filters_`."""
        known = 3 * min(_TRAINED_WIDTH, self.width)
        if bool(self.linear.weight[:, known:].any()) or known == self.linear.in_features:
            return {}
        return {
            name: module.out_channels * known // self.linear.in_features
            for name, module in self.named_modules()
            if isinstance(module, nn.Conv2d)
        }
