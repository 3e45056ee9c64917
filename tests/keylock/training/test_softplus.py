"""softplus.py: the same function, its gradient and the gradient of that, and torch's own again after the block."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from keylock.explainers import make
from keylock.training.softplus import quick_softplus


@pytest.mark.parametrize("options", [{}, {"beta": 8.0}, {"beta": 2.0, "threshold": 30.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_gradients_and_gradients_of_gradients_are_those_of_torch(dtype, options):
    given = torch.cat([torch.linspace(-40, 40, 161), torch.tensor([-1e4, 0.0, 1e4])]).to(dtype)

    def found():
        values = given.clone().requires_grad_()
        answers = F.softplus(values, **options)
        (first,) = torch.autograd.grad((answers**2).sum(), values, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), values)
        return answers, first, second

    expected = found()
    with quick_softplus():
        quick = found()
        assert "Softplus" in type(quick[0].grad_fn).__name__
        assert type(nn.Softplus()(given.clone().requires_grad_()).grad_fn).__name__ == "_SoftplusBackward"
    close = {"rtol": 2e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    for one, other in zip(quick, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, **close)
        lower = F.softplus(given.clone().requires_grad_(), 1.0, 5.0)
    assert type(lower.grad_fn).__name__ == type(found()[0].grad_fn).__name__ == "SoftplusBackward0"


def test_rules_for_the_way_back_still_reach_it():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    images, targets = torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
    for name in ("gradient", "guided_backprop"):
        expected = make(name).explain(net, images, targets).maps
        with quick_softplus():
            found = make(name).explain(net, images, targets).maps
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
