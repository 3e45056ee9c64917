"""One table for all kinds of architectures: each folds, shows its layers and can be trained through twice.

Networks have few blocks or channels where their constructors allow it, and images are small.
"""

import importlib.util
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import DenseNet, MobileNetV2, MobileNetV3, ResNet, VisionTransformer, convnext, mobilenetv3, vgg
from torchvision.models.resnet import BasicBlock, Bottleneck

from keylock.errors import LayerNotFoundError
from keylock.explainers import explain_many, make, make_for
from keylock.models import (
    capture_outputs,
    create,
    find_layers,
    prepare,
    smooth_activations,
)
from keylock.models.folding import ChannelAffine
from keylock.models.vit import ViT

CLASSES = 5


def vgg_bn():
    features = vgg.make_layers([8, "M", 16, 16, "M", 32], batch_norm=True)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, CLASSES))


def mobilenet_v3():
    setting, last = mobilenetv3._mobilenet_v3_conf("mobilenet_v3_small", width_mult=0.25)
    return MobileNetV3(setting, last, num_classes=CLASSES)


def convnext_small():
    stages = [convnext.CNBlockConfig(8, 16, 2), convnext.CNBlockConfig(16, None, 2)]
    return convnext.ConvNeXt(stages, num_classes=CLASSES)


def timm_model(name, **extra):
    import timm

    return timm.create_model(name, num_classes=CLASSES, **extra)


def own_module():
    class Hourglass(nn.Module):
        """What a user might write: a transposed convolution, groups, PReLU, a shortcut by a function."""

        def __init__(self):
            super().__init__()
            self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.PReLU(8))
            self.mix = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.InstanceNorm2d(8, track_running_stats=True))
            self.up = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8), nn.LeakyReLU(0.1))
            self.squeeze = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU6())
            self.head = nn.Linear(8, CLASSES)

        def forward(self, images):
            down = self.down(images)
            return self.head(self.squeeze(self.up(down + self.mix(down)).mean(dim=(2, 3))))

    return Hourglass()


# name: what builds it, image size, the layer for Grad-CAM, the kind of layers, how many are stacked,
# and whether folding leaves scales and shifts because no convolution runs right before a BatchNorm.
TABLE = {
    "ResNet, CIFAR kind": (partial(create, "resnet20", num_classes=CLASSES), 16, "layer3", "maps", 10, False),
    "ResNet-18, small stem": (partial(create, "resnet18_cifar", num_classes=CLASSES), 16, "layer4", "maps", 9, False),
    "ResNet, ImageNet kind": (
        partial(ResNet, BasicBlock, [1, 1, 1, 1], num_classes=CLASSES),
        64,
        "layer4",
        "maps",
        5,
        False,
    ),
    "ResNet, bottlenecks and groups": (
        partial(ResNet, Bottleneck, [1, 1, 1, 1], num_classes=CLASSES, groups=8, width_per_group=4),
        64,
        "layer4",
        "maps",
        5,
        False,
    ),
    "VGG-BN": (vgg_bn, 32, "0", "maps", 4, False),
    "MobileNetV2": (partial(MobileNetV2, num_classes=CLASSES, width_mult=0.25), 64, "features", "maps", 35, False),
    "MobileNetV2, small stem": (
        partial(create, "mobilenet_v2_cifar", num_classes=CLASSES),
        16,
        "features",
        "maps",
        35,
        False,
    ),
    "MobileNetV3": (mobilenet_v3, 64, "features", "maps", 24, False),
    "DenseNet": (partial(DenseNet, 8, (2, 2), 16, num_classes=CLASSES), 32, "features", "maps", 10, True),
    "ConvNeXt": (convnext_small, 32, "features", "maps", 4, False),
    "ViT": (
        partial(ViT, num_classes=CLASSES, image_size=16, width=24, depth=2),
        16,
        "blocks.1.norm1",
        "tokens",
        2,
        False,
    ),
    "ViT of torchvision": (
        partial(VisionTransformer, 16, 4, 2, 3, 24, 48, num_classes=CLASSES),
        16,
        "encoder.layers.encoder_layer_1.ln_1",
        "tokens",
        2,
        False,
    ),
    "a module of one's own": (own_module, 16, "up", "maps", 1, True),
    "timm: EfficientNet": (partial(timm_model, "test_efficientnet"), 64, "bn2", "maps", 9, False),
    "timm: ResNetV2": (partial(timm_model, "resnetv2_18"), 64, "norm", "maps", 17, True),
    "timm: ViT": (partial(timm_model, "test_vit", img_size=32), 32, "blocks.5.norm1", "tokens", 6, False),
}
WITHOUT_TIMM = importlib.util.find_spec("timm") is None


@pytest.fixture(params=TABLE)
def case(request):
    """An architecture of the table with lived-in statistics, its images, and the rest of its row."""
    if request.param.startswith("timm") and WITHOUT_TIMM:
        pytest.skip("timm is not installed: the extra [timm] has it")
    build, size, *expected = TABLE[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = live_in(build())
        images = torch.randn(3, 3, size, size)
    return model, images, expected


def live_in(model):
    """Statistics, affine parts and heads that are not the trivial ones, in evaluation mode."""
    for module in model.modules():
        if isinstance(module, _BatchNorm | nn.InstanceNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
            if module.weight is not None:
                module.weight.data.uniform_(0.7, 1.5)
                module.bias.data.uniform_(-0.2, 0.4)
        elif isinstance(module, nn.Linear) and not module.weight.any():
            module.weight.data.normal_(std=0.1)
    return model.eval()


def states(model):
    """Everything a context manager could leave behind."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    tree = [(name, id(module), module.training) for name, module in model.named_modules(remove_duplicate=False)]
    fast = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    return hooks, tree, fast, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(before, after):
    assert before[:3] == after[:3]
    assert before[3].keys() == after[3].keys()
    assert all(torch.equal(before[3][name], tensor) for name, tensor in after[3].items())


def test_architecture_is_prepared_explained_and_trained_through(case):
    model, images, (last, kind, stacked, leaves_affine) = case
    others = torch.flip(images, dims=(3,))
    with torch.no_grad():
        expected = model(others)
        folded = prepare(model, images)
        found = folded(others)

    # Folding: the function stays, and what is left has plain weights.
    assert expected.shape == (3, CLASSES)
    assert (found - expected).abs().max() <= 5e-5 * expected.abs().max()
    assert not any(isinstance(m, _BatchNorm | nn.InstanceNorm2d) for m in folded.modules())
    assert any(isinstance(m, ChannelAffine) for m in folded.modules()) == leaves_affine
    for module in folded.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert isinstance(module.weight, nn.Parameter)

    # Layers.
    before = states(folded)
    layers = find_layers(folded, images)
    assert_unchanged(before, states(folded))
    assert (layers.last, layers.kind, len(layers.stack)) == (last, kind, stacked)
    with torch.no_grad(), capture_outputs(folded, [layers.last, *layers.stack]) as outputs:
        folded(images)
    dimensions = {output.dim() for output in outputs.values()}
    if kind == "tokens":
        rows, columns = layers.grid
        assert dimensions == {3}
        assert outputs[layers.last].shape[1] == layers.prefix_tokens + rows * columns
    else:
        assert dimensions == {4}
        assert (layers.grid, layers.prefix_tokens) == (None, 0)
        assert min(outputs[layers.last].shape[2:]) > 1

    # Gradients, and gradients of gradients.
    gradient = make("gradient")
    before = states(folded)
    with smooth_activations(folded):
        _, maps = explain_many(folded, [gradient], images, torch.tensor([0, 1, 2]), create_graph=True)
    assert_unchanged(before, states(folded))
    torch.autograd.backward(maps["gradient"].square().sum())
    first = next(module for module in folded.modules() if isinstance(module, nn.Conv2d))
    assert first.weight.grad.abs().max() > 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in folded.parameters())


FITTING = {"maps": ("grad_cam", "visual_backprop", "gradient"), "tokens": ("grad_cam", "attention_rollout", "gradient")}
UNFIT = {"maps": "attention_rollout", "tokens": "visual_backprop"}


def test_explainers_fit_or_say_that_they_do_not(case):
    model, images, (_, kind, *_) = case
    folded = prepare(model, images)
    layers = find_layers(folded, images)
    targets = torch.full((3,), -1)
    before = states(folded)

    _, maps = explain_many(folded, make_for(layers, FITTING[kind]), images, targets)
    for name in FITTING[kind]:
        assert maps[name].dim() == 3
        assert (maps[name] >= 0).all()
        assert torch.isfinite(maps[name]).all()
        assert maps[name].flatten(1).std(dim=1).max() > 0
    if kind == "tokens":
        assert maps["grad_cam"].shape[1:] == maps["attention_rollout"].shape[1:] == layers.grid
    with pytest.raises(LayerNotFoundError, match=r"take attention_rollout|take grad_cam"):
        explain_many(folded, make_for(layers, [UNFIT[kind]]), images, targets)
    assert_unchanged(before, states(folded))
