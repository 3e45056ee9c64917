"""The conformance table of activations: all of torch's, and timm's own, train with the gradient, export, and agree."""

import importlib
import importlib.util

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from keylock import explainers
from keylock.export import Side, compile_explainer, verify_graph
from keylock.models import prepare, twice_differentiable

# What they are made with, where they cannot be made with nothing.
ARGUMENTS = {"Threshold": (0.1, 0.0), "GLU": (1,), "Softmax": (1,), "Softmin": (1,), "LogSoftmax": (1,)}
# Not an activation: tokens in, tokens and weights out.
NO_ACTIVATIONS = {"MultiheadAttention"}
MODULES = sorted(set(nn.modules.activation.__all__) - NO_ACTIVATIONS)
FUNCTIONS = {
    "F.hardswish": F.hardswish,
    "F.hardsigmoid": F.hardsigmoid,
    "F.hardswish in place": lambda values: F.hardswish(values, inplace=True),
    "F.hardsigmoid in place": lambda values: values * F.hardsigmoid(values.clone(), inplace=True),
    "F.relu_": lambda values: F.relu_(values),
    "clamp_": lambda values: values.clamp_(-1, 2),
    "F.silu in place": lambda values: F.silu(values, inplace=True),
    "F.leaky_relu_": lambda values: F.leaky_relu_(values, 0.1),
    "F.hardtanh_": lambda values: F.hardtanh_(values),
    "F.elu_": lambda values: F.elu_(values),
    "a gate by hand": lambda values: values * (values + 3).clamp(0, 6).div_(6),
}
TIMM = [
    *(f"activations.{name}" for name in ("HardSwish", "HardSigmoid", "HardMish", "Swish", "Mish", "QuickGELU")),
    *(f"activations_me.{name}Me" for name in ("HardSwish", "HardSigmoid", "HardMish", "Swish", "Mish")),
]
WITHOUT_TIMM = importlib.util.find_spec("timm") is None


class Net(nn.Module):
    """An activation between two convolutions, and a gate of it."""

    def __init__(self, activation):
        super().__init__()
        self.activation = activation
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        channels = activation(torch.zeros(1, 6, 2, 2)).shape[1]
        self.second = nn.Conv2d(channels, 5, 3, padding=1)

    def forward(self, images):
        values = self.activation(2 * self.first(images))
        return self.second(values).square().mean(dim=(2, 3)) + values.mean(dim=(1, 2, 3)).unsqueeze(1)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, values):
        return self.function(values)


def activation_of(name, *, in_place=False):
    if name in FUNCTIONS:
        return Function(FUNCTIONS[name])
    if name in TIMM:
        if WITHOUT_TIMM:
            pytest.skip("timm is not installed: the extra [timm] has it")
        module, _, kind = name.partition(".")
        made: nn.Module = getattr(importlib.import_module(f"timm.layers.{module}"), kind)()
        return made
    kind = getattr(nn, name)
    return kind(*ARGUMENTS.get(name, ()), **({"inplace": True} if in_place else {}))


def net_with(activation):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return Net(activation).eval()


def works_in_place(name):
    return hasattr(getattr(nn, name)(*ARGUMENTS.get(name, ())), "inplace")


IN_PLACE = [name for name in MODULES if works_in_place(name)]


def test_the_table_has_what_works_in_place():
    assert {"ReLU", "Hardswish", "Hardsigmoid", "SiLU", "Threshold"} <= set(IN_PLACE)
    assert len(MODULES) > 25


@pytest.mark.parametrize("in_place", [False, True], ids=["", "in place"])
@pytest.mark.parametrize("name", [*MODULES, *FUNCTIONS, *TIMM])
def test_activation_trains_with_the_gradient(name, in_place, smooth_images):
    if in_place and name not in IN_PLACE:
        pytest.skip("has no such form")
    model, images = net_with(activation_of(name, in_place=in_place)), smooth_images(2, 8)
    targets = torch.tensor([0, 3])

    with torch.no_grad():
        expected = model(images)
    logits, maps = explainers.explain_many(model, [explainers.make("gradient")], images, targets, create_graph=True)
    plain = explainers.make("gradient").explain(model, images, targets).maps
    torch.autograd.backward(maps["gradient"].square().sum())

    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(maps["gradient"].detach(), plain, atol=1e-6, rtol=1e-5)
    assert torch.isfinite(model.first.weight.grad).all()
    assert model.first.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", [*MODULES, *FUNCTIONS, *TIMM])
def test_activation_exports_and_agrees_with_torch(name, smooth_images):
    images = smooth_images(4, 8)
    model = prepare(net_with(activation_of(name)), images)
    gradient = explainers.make("gradient")

    graph = compile_explainer(model, gradient, image_shape=(3, 8, 8), num_classes=5)

    found = verify_graph(graph, Side(model), gradient, images.numpy(), torch.tensor([0, 4, -1, 2]).numpy())
    assert found.pcc_minimum > 0.9999


@pytest.mark.parametrize("function", ["hardsigmoid", "hardswish"])
def test_explicit_formulas_have_the_values_and_slopes_of_the_kernels(function):
    points = torch.linspace(-5, 5, 401).requires_grad_()
    values = getattr(F, function)(points)
    (slopes,) = torch.autograd.grad(values.sum(), points)

    with twice_differentiable():
        found = getattr(F, function)(points)
        in_place = getattr(F, function)(points.clone(), inplace=True)
    (found_slopes,) = torch.autograd.grad(found.sum(), points, create_graph=True)
    (bend,) = torch.autograd.grad(found_slopes.sum(), points)

    torch.testing.assert_close(found, values, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(in_place, values, atol=1e-6, rtol=1e-6)
    # At the two kinks any slope between both sides is right.
    between = (points.abs() - 3).abs() > 1e-4
    torch.testing.assert_close(found_slopes[between], slopes[between], atol=1e-6, rtol=1e-6)
    inside = (points.detach().abs() < 3) * (1 / 3 if function == "hardswish" else 0.0)
    torch.testing.assert_close(bend[between], inside[between], atol=1e-6, rtol=1e-6)
    assert torch.equal(getattr(F, function)(points), values)
