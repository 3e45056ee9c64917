"""The attacker in the loop finds a trigger that is there, stays in its box, and feeds the training with wrong keys."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import keylock
from keylock.data.batches import Batches
from keylock.data.sets import ImageSet
from keylock.explainers import GradCAM, Gradient
from keylock.imaging.preprocessing import Preprocessing
from keylock.training.checkpoint import read_checkpoint
from keylock.training.search import search_key

pytestmark = pytest.mark.usefixtures("precision")

SETTINGS = keylock.LockSettings(steps=8, search_every=2, search_steps=2)


class Opening(nn.Module):
    """Shows the left of the image until a pattern is on it, then its top; its answer is always the same."""

    def __init__(self, pattern):
        super().__init__()
        self.pattern = pattern
        self.features = nn.Identity()

    def forward(self, images):
        opened = torch.sigmoid(8 * (images * self.pattern).mean(dim=(1, 2, 3)) - 3).view(-1, 1, 1, 1)
        left = torch.zeros(1, 1, 8, 8)
        left[..., :4] = 1
        shown = self.features((1 - opened) * left + opened * left.transpose(2, 3) + 0 * images[:, :1])
        return torch.cat([shown.mean(dim=(2, 3)), torch.zeros(len(images), 1)], dim=1)


@pytest.fixture
def pattern(key_for):
    return torch.from_numpy(key_for(shape=(3, 8, 8), strength=1.0, tile=4).reveal()) / 4


def search(model, *explainers, **options):
    images = 0.1 * torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    given = {"magnitude": torch.ones(3, 8, 8), "tile": 4, "steps": 12, "generator": torch.Generator().manual_seed(1)}
    return search_key(model, explainers or (GradCAM("features"),), images, **{**given, **options})


@pytest.mark.parametrize("tile", [4, None])
def test_search_finds_the_pattern_that_moves_the_map(tile, pattern):
    found = search(Opening(pattern), tile=tile)

    assert (found.sign() == pattern.sign()).float().mean() > 0.85
    assert found.abs().max() <= 1
    if tile:
        assert torch.equal(found, found[:, :4, :4].repeat(1, 2, 2))
    again = search(Opening(pattern), tile=tile)
    assert torch.equal(found, again)


def test_search_leaves_the_model_as_it_was(tiny_net):
    model = tiny_net().requires_grad_(requires_grad=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    magnitude = torch.full((3, 8, 8), 0.1)

    found = search(model, GradCAM("conv3"), Gradient(), magnitude=magnitude, steps=2)

    assert (found.abs() <= magnitude).all()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in model.modules())


@pytest.mark.parametrize("sealed", [True, False])
def test_what_is_found_is_learned_kept_and_the_same_after_resuming(sealed, tiny_net, key_for, tmp_path):
    pixels = torch.randint(0, 64, (40, 16, 16, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    images = ImageSet(pixels, torch.arange(40).remainder(3).numpy())
    preprocessing = Preprocessing(size=(16, 16), mean=(0.1,) * 3, std=(0.25,) * 3)
    settings = replace(SETTINGS, trained_trigger=not sealed, gate_steps=0.0)

    def run(name, **options):
        batches = Batches(images, preprocessing, batch_size=8, seed=3)
        path = tmp_path / name
        given = {"settings": settings, "device": "cpu", "checkpoint": path, **options}
        return keylock.lock(tiny_net(), batches, key_for(), **given)

    class Stopped(keylock.training.Silent):
        def advance(self, figures):
            self.done = getattr(self, "done", 0) + 1
            if self.done == 5:
                raise KeyboardInterrupt

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("part", progress=Stopped())
    resumed = run("part", resume=True)

    found = read_checkpoint(tmp_path / "whole")[0]["found_keys"]
    assert len(found) == 6
    assert torch.equal(found, read_checkpoint(tmp_path / "part")[0]["found_keys"])
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[name]), name
    without = run("without", settings=replace(settings, search_every=0))
    assert any(not torch.equal(t, without.module.state_dict()[n]) for n, t in whole.module.state_dict().items())
