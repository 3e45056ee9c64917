"""Gradients through pooling where places are equal: on even surfaces the graph and torch choose the same place."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from keylock.explainers import make
from keylock.export import Side, compile_explainer, verify_graph
from keylock.imaging.contrast import same_map
from keylock.models import Opened, added_to_inputs, arrays_of, delta_between, merged
from keylock.models.deltas import add_deltas_, merge_deltas_
from keylock.trigger.keys import Key, KeySeed


class LastInMemory(nn.Module):
    """A mean over whole maps whose channels come last in memory, as after a LayerNorm over channels."""

    def forward(self, maps):
        last = F.layer_norm(maps.permute(0, 2, 3, 1), maps.shape[1:2]).permute(0, 3, 1, 2)
        return last * F.adaptive_avg_pool2d(last, (1, 1)).sigmoid()


POOLS = {
    "max": lambda: nn.MaxPool2d(2),
    "max, overlapping": lambda: nn.MaxPool2d(3, 2),
    "max, ceiling": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "max, padded": lambda: nn.MaxPool2d(3, 1, padding=1),
    "max, padded ceiling": lambda: nn.MaxPool2d((3, 2), (2, 3), padding=(1, 0), ceil_mode=True),
    "max, dilated": lambda: nn.MaxPool2d(3, 2, dilation=2),
    "mean, ceiling": lambda: nn.AvgPool2d(3, 2, ceil_mode=True),
    "mean, padded ceiling": lambda: nn.AvgPool2d(3, 2, padding=1, ceil_mode=True),
    "mean of what is there": lambda: nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False),
    "adaptive mean": lambda: nn.AdaptiveAvgPool2d((5, 4)),
    "mean of channels last": LastInMemory,
}


def lock_of(pool):
    """A reference with a pooling layer, the same with deltas, even images with few edges, a key and the delta."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            pool,
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        ).eval()
        student = add_deltas_(copy.deepcopy(reference), rank=2, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if parameter.requires_grad and not name.endswith("down"):
                    parameter.add_(torch.randn(parameter.shape) * 0.1)
        coarse = torch.randn(64, 3, 4, 4)
    images = coarse.repeat_interleave(5, dim=2).repeat_interleave(5, dim=3)
    key = Key.derive(KeySeed(bytes(range(32))), shape=(3, 20, 20), std=(0.25,) * 3)
    module = merge_deltas_(copy.deepcopy(student)).eval()
    for network in (reference, module):
        network.requires_grad_(requires_grad=False)
    return reference, module, images[:8], key, delta_between(module, reference)


@pytest.mark.parametrize("name", POOLS)
def test_graphs_choose_the_places_that_torch_chooses(name):
    reference, module, images, _, delta = lock_of(POOLS[name]())
    explainer, shape = make("gradient"), (3, 20, 20)
    graph = compile_explainer(module, explainer, image_shape=shape, num_classes=3, weights=delta.names)
    targets = np.full(8, -1, np.int64)

    for side in (Side(module), Side(reference, weights=delta.added_to(arrays_of(module)))):
        verify_graph(graph, side, explainer, images.numpy(), targets)
        [found] = side.open(graph).run(["map"], {"image": images.numpy(), "target": targets})
        expected = explainer.explain(side.module, images, torch.from_numpy(targets)).maps.numpy()
        assert min(same_map(one, other) for one, other in zip(found, expected, strict=True)) > 0.999


def test_a_key_that_is_added_leaves_no_rounding_on_the_images():
    _, module, images, key, delta = lock_of(nn.MaxPool2d(3, 2, ceil_mode=True))
    offset, network, seen = torch.from_numpy(key.reveal()), merged(module, delta), []
    full = Opened(module, network, offset, lambda rows: torch.ones(len(rows), dtype=torch.bool))
    network[0].register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0].clone()))
    with added_to_inputs(full, offset):
        full(images)
        # A block within another adds to what that one adds.
        with added_to_inputs(full, offset):
            full(images)
    torch.testing.assert_close(seen[0], images, rtol=0, atol=0)
    torch.testing.assert_close(seen[1], key.apply(images), rtol=0, atol=0)
    assert not torch.equal(key.apply(images) - offset, images)
