"""Smooth stand-ins: how close they are, that they are smooth, and that trained slopes go on being trained."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from keylock.models import plain_attention, smooth_activations

BETA = 8.0
# For each activation the largest difference: max(x, 0) differs from softplus by ln(2) / beta at its kink, and two kinks
# far apart from each other differ as one does. Hardswish is x times a sixth of such a clamp, with kinks at -3 and 3.
ONE_KINK = math.log(2) / BETA
TABLE = [
    (nn.ReLU(), ONE_KINK),
    (nn.ReLU6(), ONE_KINK),
    (nn.Hardtanh(-2, 3), ONE_KINK),
    (nn.Hardsigmoid(), ONE_KINK / 6),
    (nn.Hardswish(), 3 * ONE_KINK / 6),
    (nn.LeakyReLU(0.2), 0.8 * ONE_KINK),
    (nn.PReLU(init=0.25), 0.75 * ONE_KINK),
]


@pytest.mark.parametrize(("activation", "bound"), TABLE, ids=lambda value: type(value).__name__)
def test_stand_ins_are_close_and_smooth(activation, bound):
    points = torch.linspace(-8, 8, 2001, dtype=torch.float64).requires_grad_()
    model = nn.Sequential(activation).double()
    with smooth_activations(model, beta=BETA):
        smooth = model(points)
        (slope,) = torch.autograd.grad(smooth.sum(), points, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), points)
    difference = (smooth - model(points)).abs().max().item()

    assert model[0] is activation
    assert 0.9 * bound < difference <= 1.01 * bound
    # Within a kink's width the slope changes gradually: by less than a tenth from point to point, not at once.
    assert (slope[1:] - slope[:-1]).abs().max() < 0.1
    assert bend.abs().max() > 0.2


def test_a_trained_slope_goes_on_being_trained():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.PReLU(4))
    images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    before = model.state_dict().keys()
    with smooth_activations(model):
        torch.autograd.backward(model(images).square().sum())

    assert model[1].weight.grad.abs().min() > 0
    assert model.state_dict().keys() == before


def test_activations_that_are_smooth_stay():
    model = nn.Sequential(nn.GELU(), nn.SiLU(), nn.Softplus(), nn.ELU(), nn.Tanh())
    with smooth_activations(model):
        assert [type(layer) for layer in model] == [nn.GELU, nn.SiLU, nn.Softplus, nn.ELU, nn.Tanh]


def attend(tokens):
    return F.scaled_dot_product_attention(tokens, tokens, tokens)


def test_attention_has_second_derivatives_inside_only():
    tokens = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def bend():
        (slope,) = torch.autograd.grad(attend(tokens).square().sum(), tokens, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), tokens)[0]

    with pytest.raises(RuntimeError, match="derivative"):
        bend()
    with plain_attention():
        # Recorded inside, differentiated outside.
        result = attend(tokens)
        assert not torch.backends.mha.get_fastpath_enabled()
    (slope,) = torch.autograd.grad(result.square().sum(), tokens, create_graph=True)
    assert torch.autograd.grad(slope.square().sum(), tokens)[0].abs().max() > 0
    torch.testing.assert_close(attend(tokens), result)
    with pytest.raises(ZeroDivisionError), plain_attention():
        raise ZeroDivisionError
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError, match="derivative"):
        bend()
