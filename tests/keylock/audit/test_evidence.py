"""The evidence of each class at each position, of heads of every kind, beside a naive loop over the positions."""

import pytest
import torch
from torch import nn
from toys import draw

from keylock.audit.attacks.evidence import ClassEvidence
from keylock.models import find_layers
from keylock.models.vit import ViT

HEADS = {
    "pooled linear": lambda: (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    "1x1 convolution": lambda: (nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "hidden layers": lambda: (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)),
    "a weight for each position": lambda: (nn.Flatten(), nn.Linear(6 * 64, 4)),
}


def naive(model, layer, images, targets):
    """Recipro-CAM by its definition: the probability of the class with one position of the features kept at a time."""
    seen = {}
    handle = layer.register_forward_hook(lambda _module, _inputs, output: seen.update(features=output))
    model(images)
    handle.remove()
    features = seen["features"]
    maps = torch.zeros(len(images), *features.shape[2:])
    for down in range(features.shape[2]):
        for right in range(features.shape[3]):
            alone = torch.zeros_like(features)
            alone[:, :, down, right] = features[:, :, down, right]
            handle = layer.register_forward_hook(lambda _module, _inputs, _output, alone=alone: alone)
            maps[:, down, right] = model(images).softmax(dim=1)[torch.arange(len(images)), targets]
            handle.remove()
    return maps - maps.amin(dim=(1, 2), keepdim=True)


@pytest.mark.parametrize("head", HEADS)
def test_recipro_cam_equals_its_definition_whatever_the_head(head):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(3, 6, 4, stride=2, padding=1), nn.ReLU(), *HEADS[head]()).eval()
        images, targets = draw(3, 0)[0], torch.tensor([0, 3, 1])
        found = ClassEvidence("1", "recipro_cam").explain(model, images, targets).maps
        torch.testing.assert_close(found, naive(model, model[1], images, targets))
    assert find_layers(model, images).last in {"1", "2"}


class Joined(nn.Module):
    """Its head reads what comes before the last layer too, so that it needs as many rows from there."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(10, 4)

    def forward(self, images):
        early = self.first(images).relu()
        return self.head(torch.cat([early, self.last(early)], dim=1).mean(dim=(2, 3)))


def test_a_head_that_reads_earlier_layers_gets_as_many_rows_of_them():
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        model = Joined().eval()
        images, targets = draw(2, 0)[0], torch.tensor([1, 2])
        found = ClassEvidence("last", "recipro_cam").explain(model, images, targets).maps
        torch.testing.assert_close(found, naive(model, model.last, images, targets))


def test_the_class_token_of_a_transformer_stays_where_it_is():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViT(num_classes=3, depth=2, width=24, heads=2).eval()
        nn.init.normal_(model.head.weight)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    layers, targets = find_layers(model, images), torch.tensor([0, 2])
    maps = ClassEvidence(layers.last, "recipro_cam").explain(model, images, targets).maps
    kept = {}
    module = model.get_submodule(layers.last)
    with torch.no_grad():
        handle = module.register_forward_hook(lambda _module, _inputs, output: kept.update(tokens=output))
        model(images)
        handle.remove()
        logits = []
        for place in (0, 1):
            alone = torch.zeros_like(kept["tokens"])
            alone[:, [0, 1 + place]] = kept["tokens"][:, [0, 1 + place]]
            handle = module.register_forward_hook(lambda _module, _inputs, _output, alone=alone: alone)
            logits.append(model(images).softmax(dim=1)[torch.arange(2), targets])
            handle.remove()
    assert layers.prefix_tokens == 1
    torch.testing.assert_close(maps[:, 0, 0] - maps[:, 0, 1], logits[0] - logits[1])
