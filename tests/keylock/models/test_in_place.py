"""Networks whose activations work in place stay the networks they are, in training and in their graphs."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from keylock import explainers
from keylock.export import Side, compile_explainer, verify_graph
from keylock.models import prepare, smooth_activations


class Block(nn.Module):
    """A convolution, BatchNorm and one activation between, with the images of a stem."""

    def __init__(self, forward, activation=None, width=6):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.act = nn.ReLU(inplace=True) if activation is None else activation
        self.one = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.two = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.drop = nn.Dropout(0.5, inplace=True)
        self.head = nn.Linear(width, 4)
        self._forward = forward

    def forward(self, images):
        return self.head(self._forward(self, self.stem(images)).mean(dim=(2, 3)))


def skip(net, x):
    y = net.act(x)
    y = net.act(net.one(y))
    return net.two(y) + x


def statement(net, x):
    x = net.one(x)
    net.act(x)
    x = net.two(x)
    net.act(x)
    return x


def earlier_name(net, x):
    kept = x
    x = net.act(x)
    return net.one(x) * kept


def view(net, x):
    parts = x.view(len(x), 2, 3, *x.shape[2:])
    net.act(x)
    return net.one(parts.flatten(1, 2))


def half(net, x):
    net.act(x[:, :3])
    return net.one(x)


def joined(net, x):
    y = net.one(x)
    return net.two(net.act(y) + y) + torch.cat([x[:, :3], y[:, 3:]], dim=1)


def function(net, x):
    y = F.relu(net.one(x), inplace=True)
    z = net.two(y)
    z += x
    z.clamp_(max=1.5)
    x = net.one(z)
    F.relu_(x)
    return x + F.leaky_relu_(net.two(x), 0.1)


def chained(net, x):
    y = net.one(x)
    y.add_(x).relu_()
    return net.two(net.drop(y)) + net.drop(x)


def plain(net, x):
    return net.two(net.act(net.one(x))) + x


FORMS = [skip, statement, earlier_name, view, half, joined, function, chained, plain]
KINDS = [
    nn.ReLU6(inplace=True),
    nn.Hardtanh(-0.4, 0.3, inplace=True),
    nn.SiLU(inplace=True),
    nn.LeakyReLU(0.2, inplace=True),
    nn.ELU(inplace=True),
    nn.Hardswish(inplace=True),
    nn.Hardsigmoid(inplace=True),
    nn.Mish(inplace=True),
    nn.Threshold(0.1, -0.2, inplace=True),
]


def net_of(forward, activation=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        net = Block(forward, activation)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=torch.Generator().manual_seed(1))
            module.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    return net.eval()


def assert_same_logits(model, prepared, images):
    with torch.no_grad():
        expected, found = model(images.clone()), prepared(images.clone())
    assert (found - expected).abs().max() <= 1e-5 * (expected.max() - expected.min())


ROWS = [*((form, None) for form in FORMS), *((skip, kind) for kind in KINDS)]
NAMES = [form.__name__ if kind is None else type(kind).__name__ for form, kind in ROWS]


@pytest.mark.parametrize(("form", "kind"), ROWS, ids=NAMES)
def test_in_place_networks_are_prepared_as_they_are_and_trained_through(form, kind, smooth_images):
    model, images = net_of(form, kind), smooth_images(8, 10)
    prepared = prepare(model, smooth_images(3, 10, seed=9))

    assert_same_logits(model, prepared, images)
    if form is plain:
        assert not prepared.act.inplace
    assert model.act.inplace

    chosen = [explainers.make(name) for name in ("gradient", "guided_backprop")]
    targets = torch.full((8,), 2)
    _, true_maps = explainers.explain_many(prepared, [chosen[0]], images, targets)
    given = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(given)[:, 2].sum(), given)
    expected = explainers.make("gradient").explain(Linear(slope), images, torch.zeros(8, dtype=torch.long)).maps
    torch.testing.assert_close(true_maps["gradient"], expected, rtol=1e-3, atol=1e-5)

    prepared.requires_grad_(requires_grad=True)
    for smooth in (False, True):
        context = smooth_activations(prepared) if smooth else torch.enable_grad()
        with context:
            _, maps = explainers.explain_many(prepared, chosen, images, targets, create_graph=True)
        torch.autograd.backward(sum(value.square().sum() for value in maps.values()))
        assert torch.isfinite(prepared.stem.weight.grad).all()


class Linear(nn.Module):
    """Has a given gradient (batch, channels, h, w) at every image."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, images):
        return (images * self.slope).sum(dim=(1, 2, 3)).unsqueeze(1)


@pytest.mark.parametrize("form", [skip, statement, half, function])
def test_smooth_activations_follow_an_in_place_network(form, smooth_images):
    images = smooth_images(4, 10)
    prepared = prepare(net_of(form), images)
    with torch.no_grad(), smooth_activations(prepared, beta=1e4):
        found = prepared(images)

    torch.testing.assert_close(found, prepared(images), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("form", [skip, half, function])
def test_graphs_of_in_place_networks_agree_with_torch(form, smooth_images):
    images = smooth_images(4, 10)
    prepared, gradient = prepare(net_of(form), images), explainers.make("gradient")

    graph = compile_explainer(prepared, gradient, image_shape=(3, 10, 10), num_classes=4)

    found = verify_graph(graph, Side(prepared), gradient, images.numpy(), np.full(4, -1))
    assert found.pcc_minimum > 0.9999


def test_a_network_that_writes_to_its_images_gets_a_copy(smooth_images):
    class Normalising(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net_of(skip)

        def forward(self, images):
            return self.net(images.sub_(0.5).div_(0.25))

    model, images = Normalising().eval(), smooth_images(4, 10)
    prepared, before = prepare(model, images), images.clone()

    assert_same_logits(model, prepared, images)
    prepared(images)
    explainers.make("gradient").explain(prepared, images, torch.full((4,), -1))
    assert torch.equal(images, before)


def test_what_hides_its_reads_stays_in_place(smooth_images):
    def hidden(net, x):
        y = net.one(x)
        z = net.act(y)
        return net.two(z) + torch.nan_to_num(y) + (y > 0).float()

    model, images = net_of(hidden), smooth_images(4, 10)

    assert_same_logits(model, prepare(model, images), images)
