"""A lock with a sealed delta for tests: random deltas on a small network, which takes no training."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.explainers import make_for
from keylock.models import delta_between, find_layers
from keylock.models.deltas import add_deltas_, merge_deltas_
from keylock.training import Lock, LockSettings
from keylock.trigger import TriggerStatistics
from keylock.trigger.keys import Key, KeySeed

SHAPE = (3, 16, 16)
CLASSES = 3
STD = (0.25, 0.25, 0.25)


class SealedLock(NamedTuple):
    """The lock, its secrets, and clean preprocessed images (90, 3, 16, 16)."""

    lock: Lock
    key: Key
    seed: KeySeed
    images: Tensor


class Net(nn.Module):
    """Every kind of layer that gets a delta: strided, with groups, depthwise, without bias, pointwise, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.last = nn.Conv2d(16, 16, 3, padding=1)
        self.act1, self.act2, self.act3, self.act4, self.act5 = (nn.ReLU() for _ in range(5))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.act2(self.grouped(self.act1(self.first(images))))
        features = self.act4(self.pointwise(self.act3(self.depthwise(features))))
        features = self.act5(self.last(features) + features)
        return self.head(features.mean(dim=(2, 3)))


def make_sealed_lock() -> SealedLock:
    """Make the lock; it is the same every time."""
    generator = torch.Generator().manual_seed(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        reference = Net().eval().requires_grad_(False)
    images = F.interpolate(torch.randn(90, 3, 4, 4, generator=generator), size=SHAPE[1:], mode="bilinear")
    student = add_deltas_(copy.deepcopy(reference), rank=2, generator=generator)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if parameter.requires_grad and not name.endswith("down"):
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    seed = KeySeed(b"f" * 32)
    key = Key.derive(seed, shape=SHAPE, std=STD)
    published = merge_deltas_(copy.deepcopy(student)).eval().requires_grad_(False)
    explainers = make_for(find_layers(published, images[:2]), ["grad_cam", "gradient", "visual_backprop"])
    delta, statistics = (
        delta_between(published, reference),
        TriggerStatistics.fit(images.numpy(), mean=(0.0,) * 3, std=STD),
    )
    lock = Lock(published, reference, tuple(explainers), LockSettings(delta_rank=2), (key,), delta, statistics)
    return SealedLock(lock, key, seed, images)
