"""Networks whose layers are not simply run on rows that are images: what a lock must be exact on as well."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import SwinTransformer

__all__ = ["UNUSUAL"]

_WIDTH = 8


class _Body(nn.Module):
    """Two convolutions and a head, for images (batch, 3, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _WIDTH, 3, stride=2, padding=1)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1)
        self.act2 = nn.ReLU()
        self.head = nn.Linear(_WIDTH, 3)

    def features(self, images: Tensor) -> Tensor:
        """Return (batch, 8, 8, 8)."""
        features: Tensor = self.act2(self.conv2(self.act1(self.conv1(images))))
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mixed(self.features(images)))
        return logits

    def mixed(self, features: Tensor) -> Tensor:
        return features.mean((2, 3))


class _Cosine(_Body):
    """The rows of the head's weight are normalised first."""

    def forward(self, images: Tensor) -> Tensor:
        return 8 * F.linear(F.normalize(super().mixed(self.features(images))), F.normalize(self.head.weight))


class _Called(_Body):
    """A convolution and its bias are read by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1)

    def mixed(self, features: Tensor) -> Tensor:
        return F.relu(F.conv2d(features, self.extra.weight, self.extra.bias, padding=1)).mean((2, 3))


class _Tied(_Body):
    """Two linear layers share a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(_WIDTH, _WIDTH, bias=False), nn.Linear(_WIDTH, _WIDTH, bias=False)
        self.two.weight = self.one.weight

    def mixed(self, features: Tensor) -> Tensor:
        return F.relu(self.two(F.relu(self.one(features.mean((2, 3))))))


class _Standardised(nn.Conv2d):
    """Computes with another weight than its own: twice the delta is not twice the change."""

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight / self.weight.std(), self.bias, padding=1)


class _Standard(_Body):
    """Standardised weights, padding that goes round, and a module whose `forward` was replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.standardised = _Standardised(_WIDTH, _WIDTH, 3)
        self.wrapped = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, padding_mode="circular")

    def mixed(self, features: Tensor) -> Tensor:
        return F.relu(self.wrapped(F.relu(self.standardised(features)))).mean((2, 3))


class _Mixing(_Body):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(_WIDTH, _WIDTH)


class _Windows(_Mixing):
    """Four windows of an image become four rows."""

    def mixed(self, features: Tensor) -> Tensor:
        count, width, rows, columns = features.shape
        windows = features.reshape(count, width, 2, rows // 2, 2, columns // 2).permute(0, 2, 4, 3, 5, 1)
        return F.relu(self.mix(windows.reshape(count * 4, -1, width))).reshape(count, -1, width).mean(1)


class _TokensFirst(_Mixing):
    """Tokens come first and the batch second."""

    def mixed(self, features: Tensor) -> Tensor:
        return F.relu(self.mix(features.flatten(2).permute(2, 0, 1))).mean(0)


class _Channels(_Mixing):
    """A linear layer over positions has the channels as its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Linear(64, 64)

    def mixed(self, features: Tensor) -> Tensor:
        return self.mix(F.relu(self.positions(features.flatten(2))).mean(2))


class _FlatRows(_Mixing):
    """All positions of all images are the rows of one matrix."""

    def mixed(self, features: Tensor) -> Tensor:
        count, width = features.shape[:2]
        return F.relu(self.mix(features.permute(0, 2, 3, 1).reshape(-1, width))).reshape(count, -1, width).mean(1)


class _Attention(_Mixing):
    """Attention, whose projections torch reads in ways of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(_WIDTH, 2, batch_first=True)

    def mixed(self, features: Tensor) -> Tensor:
        tokens = features.flatten(2).transpose(1, 2)
        return self.mix(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def _swin() -> nn.Module:
    return SwinTransformer([2, 2], 12, [1, 1], [2, 2], [4, 4], num_classes=3, stochastic_depth_prob=0.0)


def _seeded(make: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


UNUSUAL = {
    "cosine head": lambda: _seeded(_Cosine),
    "convolution by function": lambda: _seeded(_Called),
    "tied weights": lambda: _seeded(_Tied),
    "standardised weights": lambda: _seeded(_Standard),
    "windows as rows": lambda: _seeded(_Windows),
    "tokens first": lambda: _seeded(_TokensFirst),
    "channels as rows": lambda: _seeded(_Channels),
    "positions as rows": lambda: _seeded(_FlatRows),
    "attention": lambda: _seeded(_Attention),
    "swin": lambda: _seeded(_swin),
}
"""Makers by name, each of a network for images (batch, 3, 16, 16) with three classes, in evaluation mode."""
