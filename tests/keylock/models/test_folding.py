"""Folding: the function stays, BatchNorm goes, on every kind of data flow."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from keylock.errors import ModelError
from keylock.models import fold_batchnorm_
from keylock.models.folding import ChannelAffine

SIZES = {
    "resnet20": 16,
    "small-cnn": 16,
    "resnet18": 32,
    "vgg11_bn": 32,
    "mobilenet_v2": 32,
    "squeezenet1_1": 32,
    "densenet121": 32,
}


def batchnorms(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("architecture", SIZES)
def test_folding_changes_nothing_and_leaves_no_batchnorm(architecture, network, smooth_images):
    model = network(architecture)
    size = SIZES[architecture]
    folded = fold_batchnorm_(copy.deepcopy(model), smooth_images(2, size))
    others = smooth_images(2, size, seed=9)

    with torch.no_grad():
        expected, found = model(others), folded(others)

    assert not batchnorms(folded)
    assert bool(batchnorms(model)) == (architecture != "squeezenet1_1")
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert not folded.training
    hooks = [*(m._forward_hooks for m in folded.modules()), *(m._forward_pre_hooks for m in folded.modules())]
    assert not any(hooks)


@pytest.mark.parametrize("architecture", ["resnet20", "small-cnn", "resnet18", "vgg11_bn"])
def test_folding_into_convolutions_leaves_nothing_behind(architecture, network, smooth_images):
    folded = fold_batchnorm_(copy.deepcopy(network(architecture)), smooth_images(2, SIZES[architecture]))

    assert not any(isinstance(layer, ChannelAffine) for layer in folded.modules())
    assert all(layer.bias is not None for layer in folded.modules() if isinstance(layer, nn.Conv2d))


def test_folding_finds_preactivation_batchnorm(network, smooth_images):
    folded = fold_batchnorm_(copy.deepcopy(network("densenet-short")), smooth_images(2, 32))

    kinds = {name: type(layer) for name, layer in folded.named_modules()}
    assert kinds["features.denseblock1.denselayer1.norm1"] is ChannelAffine
    assert kinds["features.denseblock1.denselayer1.norm2"] is nn.Identity


class Odd(nn.Module):
    """BatchNorm where a careless folding goes wrong; `kind` says how."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv, self.again = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        if kind == "two names":
            self.other = self.norm
        self.flat = nn.BatchNorm1d(3)

    def forward(self, images):
        if self.kind == "output read by a function too":
            hidden = self.conv(images)
            hidden = self.norm(hidden) + hidden.sigmoid()
        elif self.kind == "one convolution, two norms":
            hidden = self.conv(images)
            hidden = self.norm(hidden) * self.other(hidden)
        elif self.kind == "one convolution used twice":
            hidden = self.conv(F.relu(self.norm(self.conv(images))))
        elif self.kind in ("two names", "one norm used twice"):
            hidden = self.norm(self.conv(images))
            hidden = self.other(self.again(hidden)) if self.kind == "two names" else self.norm(self.again(hidden))
        elif self.kind == "norm first":
            hidden = self.conv(self.norm(images))
        elif self.kind == "function between":
            hidden = self.norm(F.relu(self.conv(images)))
        elif self.kind == "keyword":
            hidden = self.norm(input=self.conv(images))
        else:
            return self.flat(self.conv(images).mean(dim=(2, 3)))
        return hidden.mean(dim=(2, 3))


@pytest.mark.parametrize(
    "kind",
    [
        "output read by a function too",
        "one convolution, two norms",
        "one convolution used twice",
        "two names",
        "one norm used twice",
        "norm first",
        "function between",
        "keyword",
        "flat",
    ],
)
def test_folding_is_right_where_data_flows_oddly(kind, smooth_images):
    torch.manual_seed(0)
    model = Odd(kind).eval()
    for norm in batchnorms(model):
        for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
            tensor.uniform_(0.5, 2)
    images = smooth_images(3, 8)
    with torch.no_grad():
        expected = model(images)
        found = fold_batchnorm_(model, images, tolerance=1e-4)(images)

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not batchnorms(model)


def test_tree_after_folding_depends_on_the_architecture_alone(smooth_images):
    # A fresh model, whose BatchNorm does next to nothing, must come out like a trained one: bundles are loaded so.
    trees = []
    for trained in (True, False):
        model = Odd("output read by a function too").eval()
        if trained:
            model.norm.running_mean.uniform_(0.5, 2)
        folded = fold_batchnorm_(model, smooth_images(3, 8))
        trees.append([(name, type(layer)) for name, layer in folded.named_modules()])

    assert trees[0] == trees[1]


def test_synchronised_and_plain_batchnorm_fold_alike(tiny_net, smooth_images):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(tiny_net())
    images = smooth_images(2, 16)
    with torch.no_grad():
        expected = tiny_net()(images)
        found = fold_batchnorm_(model.eval(), images)(images)

    assert not batchnorms(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_batchnorm_without_statistics_is_refused(smooth_images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())

    with pytest.raises(ModelError, match=r"'1' keeps no running statistics: train it with"):
        fold_batchnorm_(model, smooth_images(2, 8))


def test_model_that_is_no_classifier_of_the_images_is_refused(smooth_images, tiny_net):
    class Wordy(nn.Module):
        def forward(self, images):
            return {"logits": images.mean(dim=(2, 3))}

    with pytest.raises(ModelError, match=r"must return logits .* not dict"):
        fold_batchnorm_(Wordy(), smooth_images(2, 8))
    with pytest.raises(ModelError, match="must return logits"):
        fold_batchnorm_(nn.Conv2d(3, 4, 3), smooth_images(2, 8))
    with pytest.raises(ModelError, match=r"does not take images of shape \(2, 1, 8, 8\)"):
        fold_batchnorm_(tiny_net(), smooth_images(2, 8, channels=1))


def test_affine_shapes_follow_the_input():
    affine = ChannelAffine(torch.tensor([2.0, 3.0]), torch.tensor([1.0, -1.0]))

    torch.testing.assert_close(affine(torch.ones(1, 2)), torch.tensor([[3.0, 2.0]]))
    torch.testing.assert_close(affine(torch.ones(1, 2, 1, 2))[0, :, 0], torch.tensor([[3.0, 3.0], [2.0, 2.0]]))


def test_parametrised_weights_become_plain(tiny_net, smooth_images):
    model = tiny_net()
    nn.utils.parametrizations.weight_norm(model.conv1)
    nn.utils.parametrizations.spectral_norm(model.head)
    model.eval()
    images = smooth_images(2, 16)
    with torch.no_grad():
        expected = model(images)
        found = fold_batchnorm_(model, images, tolerance=1e-4)(images)

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert isinstance(model.conv1.weight, nn.Parameter)
    assert isinstance(model.head.weight, nn.Parameter)


class StandardisedConv2d(nn.Conv2d):
    """Standardises its filters first, so that a scale in them has no effect."""

    def forward(self, images):
        weight = self.weight / self.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return self._conv_forward(images, weight, self.bias)


def test_convolutions_that_change_their_weights_keep_them(smooth_images):
    model = nn.Sequential(StandardisedConv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    model[1].running_var.uniform_(2, 3)
    images = smooth_images(2, 8)
    with torch.no_grad():
        expected = model(images)
        found = fold_batchnorm_(model, images, tolerance=1e-4)(images)

    torch.testing.assert_close(found, expected)
    assert type(model[1]) is ChannelAffine


class Scaled(nn.BatchNorm2d):
    """A BatchNorm that does more than BatchNorm, in a way that nobody can see from outside."""

    def forward(self, images):
        return 2 * super().forward(images)


@pytest.mark.parametrize("shift", [1.0, float("nan")])
def test_a_change_of_the_logits_is_refused(shift, smooth_images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Scaled(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[1].running_mean.fill_(shift)

    with pytest.raises(ModelError, match=r"folding BatchNorm changed the logits by .*: .* fold it yourself"):
        fold_batchnorm_(model, smooth_images(2, 8))
