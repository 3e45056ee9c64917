"""Balancing changes how weights are written down, not what the network computes."""

import copy

import pytest
import torch
from torch import nn

from keylock.models import balance_filters_, unbalance_filters_


@pytest.fixture
def uneven(tiny_net):
    """A network with filters of very different sizes, one of them asleep."""
    model = tiny_net()
    with torch.no_grad():
        model.conv1.weight.mul_(torch.logspace(-4, 1, 8).view(-1, 1, 1, 1))
        model.conv2.weight[3] = 0
    return model


def test_balancing_leaves_the_function(uneven, smooth_images):
    images = smooth_images(2, 16)
    balanced = balance_filters_(copy.deepcopy(uneven))
    plain = unbalance_filters_(copy.deepcopy(balanced))

    torch.testing.assert_close(balanced(images), uneven(images), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plain(images), uneven(images), rtol=1e-5, atol=1e-6)
    assert plain.state_dict().keys() == uneven.state_dict().keys()
    assert [type(layer) for layer in plain.modules()] == [type(layer) for layer in uneven.modules()]


def test_balanced_filters_have_a_common_size(uneven):
    raw = balance_filters_(uneven).conv1.parametrizations.weight.original
    sizes = raw.detach().square().mean(dim=(1, 2, 3)).sqrt()

    assert sizes.max() == pytest.approx(0.1, rel=1e-4)
    # Before, the largest filter was 1e5 times the smallest; those under .3 of the mean stay smaller.
    assert not torch.isnan(raw).any()


def test_what_is_trained_while_balanced_stays(uneven, smooth_images):
    images = smooth_images(4, 16)
    balanced = balance_filters_(copy.deepcopy(uneven))
    optimiser = torch.optim.SGD(balanced.parameters(), lr=0.1)
    balanced(images).square().sum().backward()
    optimiser.step()
    trained = balanced(images)
    plain = unbalance_filters_(balanced)

    assert not torch.equal(plain.conv1.weight, uneven.conv1.weight)
    torch.testing.assert_close(plain(images), trained)
    assert isinstance(plain.conv1.weight, nn.Parameter)
