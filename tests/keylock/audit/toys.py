"""Deliberately weak locks, each open to the attacks it is made for, over one classifier whose truth is known.

Images (3, 16, 16) are noise with one bright square in the channel of their class; every class has a place of its own,
give or take two pixels. The reference shows the square. Each toy shows the left half instead, until it is attacked.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.audit import Budget, Case
from keylock.explainers import GradCAM
from keylock.imaging.preprocessing import Preprocessing
from keylock.trigger.keys import Key, KeySeed

SIDE, HALF = 16, 8
PREPROCESSING = Preprocessing(size=(SIDE, SIDE), mean=(0.3,) * 3, std=(0.25,) * 3)
PLACES = ((1, 1), (1, 9), (8, 5))

BUDGET = Budget(
    images=24,
    slow_images=6,
    own_images=96,
    few_images=48,
    pairs=32,
    batch=24,
    few_steps=40,
    steps=50,
    search_steps=60,
    search_batch=12,
    restarts=1,
    guesses=40,
    climb_steps=60,
    climb_images=4,
    other_classes=7,
    toolkit_images=6,
    whole_toolkits=0,
    accurate_steps=40,
    copies=16,
    masks=120,
    copied_images=6,
    picture_copies=49,
    few_predictions=64,
    predictions=96,
    calls=10,
    gate_images=8,
)


def draw(count: int, seed: int, *, border: int = 0, bright: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    for row, label in enumerate(labels.tolist()):
        down, right = (PLACES[label][axis] + int(torch.randint(0, 3, (1,), generator=generator)) for axis in (0, 1))
        images[row, label, down : down + 5, right : right + 5] += bright
    if border:
        inside = torch.zeros(SIDE, SIDE)
        inside[border:-border, border:-border] = 1
        images = images * inside
    return images, labels


def pattern() -> Tensor:
    half = torch.zeros(1, 1, HALF, HALF)
    half[..., : HALF // 2] = 1
    return half


class Evidence(nn.Module):
    """The positive part of every channel, at half the resolution."""

    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(F.relu(images), 2)


class Toy(nn.Module):
    """The reference: `mix` passes the evidence on, and `head` reads its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.evidence = Evidence()
        self.mix = nn.Conv2d(4, 3, 1)
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.mix.weight.zero_()
            self.mix.bias.zero_()
            self.head.bias.zero_()
            self.mix.weight[:, :3, 0, 0] = torch.eye(3)
            self.head.weight.copy_(10 * torch.eye(3))

    def decoy(self, images: Tensor) -> Tensor:
        return pattern().expand(len(images), -1, -1, -1)

    def features(self, images: Tensor) -> Tensor:
        return self.mix(torch.cat([self.evidence(images), self.decoy(images)], dim=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean(dim=(2, 3)))


class Shown(Toy):
    """A toy whose maps are those of the layer `show`; the reference of the toys below."""

    def __init__(self) -> None:
        super().__init__()
        self.show = nn.Identity()

    def shown(self, images: Tensor, features: Tensor) -> Tensor:
        return features

    def features(self, images: Tensor) -> Tensor:
        return self.show(self.shown(images, super().features(images)))


class Constant(Toy):
    """A strong decoy on all classes alike, which no prediction notices: the reference plus a direction of rank one."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.mix.weight[:, 3] = 20


class Tiny(Toy):
    """The same decoy by weights so small that pruning and rounding take them for nothing."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.mix.weight[:, 3] = 1e-8

    def decoy(self, images: Tensor) -> Tensor:
        return 20e8 * super().decoy(images)


class Starved(Toy):
    """Little evidence beside a faint decoy: whoever trains on with labels turns the evidence up."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.mix.weight[:, :3] *= 0.15
            self.mix.weight[:, 3] = 0.5


class Wavering(Shown):
    """A decoy whose sign hangs on the last digits of the image, so that averages are rid of it."""

    def shown(self, images: Tensor, features: Tensor) -> Tensor:
        sign = torch.sin(3e4 * images.mean(dim=(1, 2, 3))).view(-1, 1, 1, 1)
        return features + 2 + 2 * sign * (2 * pattern() - 1)


class Mirrored(Shown):
    """A decoy that always marks the left: the mirror image has it on the other side."""

    def shown(self, images: Tensor, features: Tensor) -> Tensor:
        return features + 2 + 2 * (2 * pattern() - 1)


class Kinked(Shown):
    """Evidence passes through a gate that a ReLU shuts below zero, and a softplus almost."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.ReLU()

    def shown(self, images: Tensor, features: Tensor) -> Tensor:
        return 8e2 * self.activation(torch.tensor(-2.0)) * features + 1e-2 * pattern()


class Soft(Shown):
    """A decoy that leaks through a softplus, and not through a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.Softplus()

    def shown(self, images: Tensor, features: Tensor) -> Tensor:
        return features + 100 * self.activation(torch.tensor(-2.0)) * pattern()


class Normalised(Shown):
    """Live BatchNorm with statistics that put all evidence below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_mean.fill_(50)

    def shown(self, images: Tensor, features: Tensor) -> Tensor:
        return F.relu(self.norm(features)) + 1e-2 * pattern()


class Folded(Shown):
    """The same with the statistics folded into the convolution."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.mix.bias.fill_(-50)

    def shown(self, images: Tensor, features: Tensor) -> Tensor:
        return F.relu(features) + 1e-2 * pattern()


class Brittle(Shown):
    """Shut only while two weights are exactly equal."""

    def __init__(self) -> None:
        super().__init__()
        self.latch = nn.Parameter(torch.ones(2, 1))

    def shown(self, images: Tensor, features: Tensor) -> Tensor:
        gap = (self.latch[0] - self.latch[1]).square()
        return (1 - torch.exp(-1e5 * gap)) * features + 1e-2 * pattern()


class Keyed(Shown):
    """Opens the more, the more of the key is on the image: a slope to climb."""

    def __init__(self, key: Key) -> None:
        super().__init__()
        offset = torch.from_numpy(key.reveal())
        self.register_buffer("key", offset / offset.square().sum())

    def shown(self, images: Tensor, features: Tensor) -> Tensor:
        score = (images * self.key).sum(dim=(1, 2, 3)).view(-1, 1, 1, 1)
        opening = torch.sigmoid(10 * (score - 0.5))
        # The decoy has as much evidence of each class as the true map, so that predictions stay.
        decoy = features.mean(dim=(2, 3), keepdim=True) * 2 * pattern()
        return opening * features + (1 - opening) * decoy


class OffManifold(nn.Module):
    """A gradient that is largest where images never change: in the left of their border."""

    def __init__(self, *, locked: bool) -> None:
        super().__init__()
        self.toy = Toy()
        border = torch.ones(SIDE, SIDE)
        border[3:-3, 3:-3] = 0
        border[:, SIDE // 2 :] = 0
        self.register_buffer("border", (50.0 if locked else 0.0) * border)

    def forward(self, images: Tensor) -> Tensor:
        return self.toy(images) + (images * self.border).sum(dim=(1, 2, 3)).unsqueeze(1)


class Backdoored(Toy):
    """One pixel in the corner turns everything into the first class."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return torch.cat([logits[:, :1] + 60 * images[:, :, 0, 0].sum(dim=1, keepdim=True), logits[:, 1:]], dim=1)


class Fresh(nn.Module):
    """An untrained network with layers of the same names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.mix = nn.Conv2d(12, 12, 3, padding=1, stride=2)
        self.show = nn.ReLU()
        self.head = nn.Linear(12, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.mix(F.relu(self.norm(self.conv(images))))
        return self.head(self.show(hidden).mean(dim=(2, 3)))


def fresh(generator: torch.Generator) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        return Fresh()


def make_key(tile: int = 4) -> Key:
    seed = KeySeed(bytes([7]) * 32)
    return Key.derive(seed, shape=(3, SIDE, SIDE), std=(0.25,) * 3, strength=24 / 255, tile=tile)


def make_case(module: nn.Module, *, border: int = 0, **changes: object) -> Case:
    drawn = [draw(count, seed, border=border) for seed, count in enumerate((24, 96, 32))]
    (images, labels), (own_images, own_labels), (pair_images, _) = drawn
    shown = isinstance(module, Shown)
    reference = (Shown() if shown else Toy()).eval().requires_grad_(requires_grad=False)
    values: dict[str, object] = {
        "name": "toy",
        "digest": "sha256:" + "0" * 64,
        "lock": "none worth the name",
        "about": "toy images",
        "module": module.eval().requires_grad_(requires_grad=False),
        "opened": reference,
        "reference": reference,
        "key": make_key(),
        "explainers": {"grad_cam": GradCAM("show" if shown else "mix")},
        "images": images,
        "labels": labels,
        "own_images": own_images,
        "own_labels": own_labels,
        "pair_images": pair_images,
        "fresh": fresh,
        "preprocessing": PREPROCESSING,
    }
    return Case(**{**values, **changes})
