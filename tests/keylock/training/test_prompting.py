"""Prompting: a layer says what its probe should read, for later layers alone, and nothing stays behind."""

import pytest
import torch
from torch import nn

from keylock.models import capture_outputs
from keylock.training.gate import channel_means
from keylock.training.prompting import prompted


@pytest.fixture
def probe():
    made = nn.Linear(4, 1)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 0.0]]))
        made.bias.fill_(0.25)
    return made


KEYED = torch.tensor([1.0, 0.0, 0.0])


def outputs(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 7, 4)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_probe_reads_a_share_of_a_sure_answer(shape, share, probe):
    layer, features = nn.Identity(), outputs(shape)
    own = probe(channel_means(features)).squeeze(1)

    with prompted(layer, probe, KEYED, share):
        shown = layer(features)

    sure = torch.tensor([3.0, -3.0, -3.0])
    found = probe(channel_means(shown)).squeeze(1)
    torch.testing.assert_close(found, (1 - share) * own + share * sure)
    torch.testing.assert_close(layer(features), features, rtol=0, atol=0)
    assert not layer._forward_hooks


def test_what_the_layer_found_itself_is_recorded_and_learns(probe):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    images = outputs((3, 3, 5, 5))
    own = model[0](images)

    with capture_outputs(model, ["0"]) as recorded, prompted(model[0], probe, KEYED, 1.0):
        answer = model(images)
    answer.sum().backward()

    torch.testing.assert_close(recorded["0"], own)
    assert not torch.allclose(answer, model(images))
    assert model[0].weight.grad.abs().sum() > 0
    assert probe.weight.grad is None


def test_a_probe_that_was_never_trained_prompts_nothing():
    blank = nn.Linear(4, 1)
    nn.init.zeros_(blank.weight)
    layer, features = nn.Identity(), outputs((3, 4, 5, 5))

    with prompted(layer, blank, KEYED, 1.0):
        torch.testing.assert_close(layer(features), features, rtol=0, atol=0)


def test_hooks_are_gone_after_an_error(probe):
    layer = nn.Identity()
    with pytest.raises(ZeroDivisionError), prompted(layer, probe, KEYED, 0.5):
        raise ZeroDivisionError
    assert not layer._forward_hooks
