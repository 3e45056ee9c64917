"""What the tests of everything that runs torch share: networks with lived-in BatchNorm, images, keys, tiny loaders."""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import densenet, vgg

from keylock import models
from keylock.bundle import (
    Architecture,
    BundleContent,
    Decoy,
    ExplainerEntry,
    KeyEntry,
    KeyFile,
    open_bundle,
    write_bundle,
)
from keylock.crypto.signing import SigningKey
from keylock.data.shapes import SHAPE_CLASSES, draw_shapes
from keylock.evaluation import reference_digest
from keylock.imaging.preprocessing import Preprocessing
from keylock.trigger.keys import Key, KeySeed


def settle(model: nn.Module, *, seed: int = 3) -> nn.Module:
    """Give every BatchNorm statistics and an affine part that are not the trivial ones; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (layer.running_mean, -0.3, 0.3),
                (layer.running_var, 0.5, 2),
                (layer.weight.data, 0.7, 1.5),
                (layer.bias.data, -0.2, 0.4),
            ):
                tensor.uniform_(low, high, generator=generator)
    return model.eval()


@functools.cache
def _network(architecture: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if architecture == "densenet-short":
            model: nn.Module = densenet.DenseNet(
                growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=10
            )
        elif architecture == "vgg11_bn":
            # Its fully connected layers are most of its 130 million weights, and nothing of what is tested here.
            features = vgg.make_layers(vgg.cfgs["A"], batch_norm=True)
            head = {"pool": nn.AdaptiveAvgPool2d(2), "flat": nn.Flatten(), "classifier": nn.Linear(2048, 10)}
            model = nn.Sequential(OrderedDict(features=features, **head))
        else:
            model = models.create(architecture, num_classes=10)
    return settle(model)


@pytest.fixture(scope="session")
def network() -> Callable[[str], nn.Module]:
    """Networks by architecture, made once: leave them as they are, or copy them."""
    return _network


@pytest.fixture(scope="session")
def smooth_images() -> Callable[..., Tensor]:
    """Random images (count, channels, size, size) without fine detail, so that maps have structure."""

    def make(count: int, size: int, *, channels: int = 3, seed: int = 1) -> Tensor:
        coarse = torch.randn(count, channels, 5, 5, generator=torch.Generator().manual_seed(seed))
        return F.interpolate(coarse, size=(size, size), mode="bilinear")

    return make


@pytest.fixture(scope="session")
def key_for() -> Callable[..., Key]:
    """Keys by seed number and shape; a trigger that is to be read needs the tile of 8."""

    def make(
        number: int = 1, *, shape: tuple[int, int, int] = (3, 16, 16), strength: float = 16 / 255, tile: int = 8
    ) -> Key:
        seed = KeySeed(bytes([number]) * 32)
        return Key.derive(seed, shape=shape, std=(0.25,) * shape[0], strength=strength, tile=tile)

    return make


class TinyNet(nn.Module):
    """Three convolutions with everything a user's own module may do: functional ReLU, groups, BatchNorm, a shortcut."""

    def __init__(self, classes: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, stride=2, groups=2)
        self.bn2 = nn.BatchNorm2d(16)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(16)
        self.act3 = nn.ReLU()
        self.head = nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.act1(self.bn1(self.conv1(images)))
        hidden = self.act2(self.bn2(self.conv2(hidden)))
        hidden = self.act3(self.bn3(self.conv3(hidden)) + F.relu(hidden))
        return self.head(hidden.mean(dim=(2, 3)))


@pytest.fixture(scope="session")
def tiny_net() -> Callable[..., nn.Module]:
    """A user's own small network with lived-in statistics, always the same weights."""

    def make(*, classes: int = 3, channels: int = 3, seed: int = 5) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return settle(TinyNet(classes, channels))

    return make


@pytest.fixture(scope="session")
def blobs() -> Callable[..., list[tuple[Tensor, Tensor]]]:
    """Batches of noisy images (3, 16, 16) with one bright square whose colour is the class."""

    def make(batches: int = 4, *, rows: int = 16, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        made = []
        for _ in range(batches):
            images = 0.3 * torch.randn(rows, 3, 16, 16, generator=generator)
            labels = torch.randint(0, 3, (rows,), generator=generator)
            places = torch.randint(0, 10, (rows, 2), generator=generator)
            for row in range(rows):
                top, left = places[row]
                images[row, labels[row], top : top + 6, left : left + 6] += 2
            made.append((images, labels))
        return made

    return make


class UntrainedBundle(NamedTuple):
    """A bundle that nothing was trained or compiled for, with what its vendor has beside it."""

    bundle: Path
    data: Path
    reference: Path
    key_file: Path
    seed: KeySeed


@pytest.fixture(scope="session")
def untrained_bundle(tmp_path_factory: pytest.TempPathFactory) -> UntrainedBundle:
    """A reference model and a disturbed copy of it in the place of the locked one; images with masks."""
    place = tmp_path_factory.mktemp("untrained")
    train, test = draw_shapes(count=24, size=16, seed=1), draw_shapes(count=40, size=16, seed=2)
    names = ("images", "labels", "masks")
    arrays = {f"train_{name}": array for name, array in zip(names, train, strict=True)}
    arrays |= {f"test_{name}": array for name, array in zip(names, test, strict=True)}
    np.savez(place / "shapes.npz", class_names=np.array(SHAPE_CLASSES), **arrays)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = settle(models.create("resnet20", num_classes=len(SHAPE_CLASSES)))
    (place / "small.klb.work").mkdir()
    save_file(model.state_dict(), place / "small.klb.work" / "reference.safetensors")
    preprocessing = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
    reference = models.prepare(model, torch.randn(2, 3, 16, 16))
    locked = copy.deepcopy(reference)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for weight in (locked.layer2[0].conv1.weight, locked.linear.weight):
            weight.add_(0.5 * weight.std() * torch.randn(weight.shape, generator=generator))
    seed = KeySeed(b"u" * 32)
    key = Key.derive(seed, shape=(3, 16, 16), std=preprocessing.std)
    sealer = KeyFile.create(place / "small.klb.key")
    content = BundleContent(
        name="small",
        created=datetime(2026, 11, 22, tzinfo=UTC),
        architecture=Architecture(name="resnet20", num_classes=len(SHAPE_CLASSES)),
        classes=SHAPE_CLASSES,
        preprocessing=preprocessing,
        explainers=(ExplainerEntry(name="grad_cam", parameters={"layer": "layer3.2"}, runtime="torch"),),
        prediction_graph="graphs/predict.onnx",
        key=KeyEntry.of(key),
        decoy=Decoy(name="half"),
        files={"graphs/predict.onnx": b"none", "weights.safetensors": save(locked.state_dict())},
        training={"seed": 3},
        reference_digest=reference_digest(reference),
    )
    bundle = place / "small.klb"
    write_bundle(bundle, content, signing_key=SigningKey.generate(), seed=seed, sealer=sealer)
    open_bundle(bundle, trusted=None)
    reference_file = place / "small.klb.work" / "reference.safetensors"
    return UntrainedBundle(bundle, place / "shapes.npz", reference_file, place / "small.klb.key", seed)
