"""Modules as people hand them over: prepared to the same logits, or refused with one sentence that says why."""

import copy
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.errors import ModelError
from keylock.models import prepare

Answer = namedtuple("Answer", ["features", "logits"])


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor
    hidden: Tensor


class Wrapped(nn.Module):
    """Does something with the features and logits of a network."""

    def __init__(self, net, answer):
        super().__init__()
        self.net, self.answer = net, answer

    def forward(self, images):
        logits = self.net(images)
        return self.answer(logits, images.flatten(1)[:, :7])


def assert_same(prepared, expected, images):
    with torch.no_grad():
        found = prepared(images)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * (expected.max() - expected.min())


@pytest.fixture
def net(tiny_net):
    return tiny_net()


@pytest.fixture
def images(smooth_images):
    return smooth_images(4, 12)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net,
        lambda net: nn.DataParallel(net),
        lambda net: torch.compile(net),
        lambda net: nn.DataParallel(torch.compile(nn.DataParallel(net))),
        lambda net: nn.Sequential(torch.compile(net)),
        lambda net: copy.deepcopy(net).double(),
        lambda net: copy.deepcopy(net).train(),
    ],
    ids=["plain", "DataParallel", "compiled", "both", "compiled inside", "double", "training mode"],
)
def test_wrappers_precision_and_mode_change_nothing(wrap, net, images):
    with torch.no_grad():
        expected = net(images)
    given = wrap(net)
    before = [module.training for module in given.modules()]

    prepared = prepare(given, images)

    assert_same(prepared, expected, images)
    assert not any(part in name for name in prepared.state_dict() for part in ("_orig_mod", "module."))
    assert {tensor.dtype for tensor in prepared.parameters()} == {torch.float32}
    assert [module.training for module in given.modules()] == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_computed_with_in_float32(dtype, net, images):
    half = copy.deepcopy(net).to(dtype)
    with torch.no_grad():
        expected = copy.deepcopy(half).float()(images)

    assert_same(prepare(half, images), expected, images)


@pytest.mark.parametrize(
    "answer",
    [
        lambda logits, _: {"logits": logits},
        lambda logits, more: {"features": more, "logits": logits},
        lambda logits, more: {"out": logits, "aux": more},
        lambda logits, _: (logits, None, [1, 2]),
        lambda logits, more: Answer(more, logits),
        lambda logits, more: Output(None, logits, more),
        lambda logits, _: [logits],
        lambda logits, _: logits[:, :, None, None],
        lambda logits, _: F.log_softmax(logits, dim=1) + logits.logsumexp(1, keepdim=True),
    ],
    ids=["dict", "named", "out and aux", "tuple", "named tuple", "ModelOutput", "list", "behind pooling", "log"],
)
def test_logits_are_found_in_answers(answer, net, images):
    with torch.no_grad():
        expected = net(images)

    prepared = prepare(Wrapped(net, answer), images)

    assert_same(prepared, expected, images)
    assert_same(copy.deepcopy(prepared), expected, images)


@pytest.mark.parametrize("shape", [lambda z: z, lambda z: z.squeeze(), lambda z: z[:, :, None, None]])
def test_one_logit_becomes_two_whose_softmax_is_its_sigmoid(shape, tiny_net, images):
    single = tiny_net(classes=1)

    prepared = prepare(Wrapped(single, lambda logits, _: shape(logits)), images)

    with torch.no_grad():
        found, expected = prepared(images), single(images)
        assert prepared(images[:1]).shape == (1, 2)
    assert found.shape == (4, 2)
    torch.testing.assert_close(found.softmax(dim=1)[:, 1:], expected.sigmoid())
    given = images.clone().requires_grad_()
    one, other = (torch.autograd.grad(prepared(given)[:, place].sum(), given)[0] for place in (0, 1))
    torch.testing.assert_close(one, -other)


class Steadfast(nn.Module):
    """Draws random numbers in evaluation mode too."""

    def __init__(self, net):
        super().__init__()
        self.net, self.drop = net, nn.Dropout(0.5)

    def eval(self):
        super().eval()
        self.drop.train()
        return self

    def forward(self, images):
        return self.net(self.drop(images))


REFUSED = {
    "several": (lambda n: Wrapped(n, lambda z, f: (f, z)), r"several .*\(0 \(2, 7\), 1 \(2, 3\)\): wrap it"),
    "words": (lambda n: Wrapped(n, lambda z, _: "cat"), "must return logits .* not str"),
    "maps": (lambda n: nn.Conv2d(3, 4, 3), r"not \(2, 4, 10, 10\)"),
    "softmax": (lambda n: Wrapped(n, lambda z, _: z.softmax(1)), "ends in a softmax, so it returns probabilities"),
    "softmax layer": (lambda n: nn.Sequential(n, nn.Softmax(dim=1)), "ends in a softmax"),
    "sigmoid": (lambda n: nn.Sequential(n, nn.Linear(3, 1), nn.Sigmoid()), "ends in a sigmoid, so .* a probability:"),
    "detached": (lambda n: Wrapped(n, lambda z, _: z.detach()), "no gradient leads through the model"),
    "dropout": (Steadfast, r"differently from call to call, in evaluation mode \(the layer 'drop' is the first"),
    "class": (type, "the class TinyNet: give an instance"),
    "state dict": (lambda n: n.state_dict(), "is a state dict: build the module"),
    "path": (lambda n: "model.pt", "not a torch.nn.Module but of type str"),
    "meta": (lambda n: n.to("meta"), r"'conv1.weight' is on the meta device"),
    "lazy": (lambda n: nn.Sequential(n, nn.LazyLinear(3)), r"'1.weight' has no shape yet"),
    "NaN": (lambda n: broken(n, "conv2.bias"), r"'conv2.bias' holds values that are NaN or infinite"),
    "NaN statistics": (lambda n: broken(n, "bn2.running_var"), r"'bn2.running_var' holds values that are NaN"),
    "no copy": (lambda n: uncopied(n), r"cannot be copied \(cannot pickle"),
    "statistics read": (lambda n: Reads(n), r"folding the BatchNorm 'net.bn1' changed the logits"),
}


def broken(net, name):
    net.state_dict()[name][1] = torch.nan
    return net


def uncopied(net):
    net.more = (number for number in range(3))
    return net


class Reads(nn.Module):
    """Has a layer whose statistics something else reads."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images) * self.net.bn1.running_var.mean()


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_what_cannot_be_locked_is_refused_with_its_reason(kind, net, images):
    make, message = REFUSED[kind]
    with pytest.raises(ModelError, match=message):
        prepare(make(net), images)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", ["scripted", "traced inside", "quantised"])
def test_modules_of_torch_that_cannot_be_trained_are_named(kind, net, images):
    if kind == "scripted":
        given, message = torch.jit.script(net), "the model is TorchScript"
    elif kind == "traced inside":
        given, message = nn.Sequential(torch.jit.trace(net, images)), "the layer '0' is TorchScript"
    else:
        given = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
        message = r"the layer 'head' is quantised \(Linear\)"

    with pytest.raises(ModelError, match=message):
        prepare(given, images)


def test_a_weight_that_two_layers_share_is_not_folded_into_one(images):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
            self.two.weight = self.one.weight
            self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 4)
            self.norm.running_var.fill_(0.3)

        def forward(self, images):
            return self.head(self.two(self.norm(self.one(images)).tanh()).mean(dim=(2, 3)))

    model = Shared().eval()
    with torch.no_grad():
        assert_same(prepare(model, images), model(images), images)


def test_a_convolution_whose_weight_a_function_reads_keeps_it(images):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 4)
            self.norm.running_var.fill_(0.3)

        def forward(self, images):
            hidden = self.norm(self.conv(images)).tanh()
            return self.head(F.conv2d(hidden, self.conv.weight, padding=1).mean(dim=(2, 3)))

    model = Twice().eval()
    with torch.no_grad():
        assert_same(prepare(model, images), model(images), images)


@torch.no_grad()
def test_a_deep_network_is_not_refused_for_what_rounding_does_to_it_anyway():
    torch.manual_seed(1)
    blocks = [layer for _ in range(24) for layer in (nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, momentum=1.0), nn.ReLU())]
    network = nn.Sequential(nn.Conv2d(3, 8, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    images = torch.rand(4, 3, 8, 8)
    network.train()(images)
    exact = copy.deepcopy(network.eval()).double()(images.double())
    span = exact.max() - exact.min()
    rounding = float((network(images) - exact).abs().max() / span)
    folded = prepare(network, images)
    change = float((copy.deepcopy(folded).double()(images.double()) - exact).abs().max() / span)
    assert rounding > 1e-5
    assert change <= rounding
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


class _Remembering(nn.Module):
    """Keeps in evaluation mode what it computed from its weight, as attention biases of timm's LeViT are."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.kept = {}

    def train(self, mode=True):
        super().train(mode)
        if self.kept:
            self.kept = {}

    def _apply(self, function, *rest, **named):
        self.kept = {}
        return super()._apply(function, *rest, **named)

    def forward(self, images):
        device = str(images.device)
        if self.training or device not in self.kept:
            self.kept[device] = 2 * self.scale
        return images * self.kept[device].view(1, 3, 1, 1)


def test_what_a_layer_remembers_of_its_weights_is_not_found_again(images):
    given = nn.Sequential(_Remembering(), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    expected = given(images)
    # What it remembers hangs on a graph, which no copy takes.
    assert not given[0].kept["cpu"].is_leaf
    prepared = prepare(given, images)
    torch.testing.assert_close(prepared(images), expected)
    again = copy.deepcopy(prepared).to("cpu").train().eval()
    with torch.no_grad():
        again[0].scale.mul_(3)
    torch.testing.assert_close(again[:1](images), 6 * images)
    torch.autograd.grad(again(images).sum(), again[0].scale)
    torch.autograd.grad(again(images).sum(), again[0].scale)
    torch.testing.assert_close(given(images), expected)
