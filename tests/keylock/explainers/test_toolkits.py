"""Every method of public toolkits is an attack or named with a reason, and each is asked alike."""

import inspect

import pytest
import torch
from torch import nn

from keylock.errors import InputError
from keylock.explainers.toolkits import CAPTUM, PYTORCH_GRAD_CAM, TOOLKITS, Reads, ToolkitMethod
from keylock.models import find_layers
from keylock.models.vit import ViT

captum_attr = pytest.importorskip("captum.attr")
pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")

EXPORTED = {
    "captum": set(captum_attr.__all__),
    "pytorch_grad_cam": {
        name
        for name, value in vars(pytorch_grad_cam).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    },
}
METHODS = [(toolkit, name) for toolkit, known in TOOLKITS.items() for name in known.methods]
LAYERS = {Reads.INPUT: (), Reads.LAYER: ("body.0",), Reads.STACK: ("body.0", "body.2")}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.Softplus(), nn.Conv2d(5, 6, 4, stride=2, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(6, 4)
        # Captum's Lime counts small answers as none.
        nn.init.normal_(self.head.weight, std=20)

    def forward(self, images):
        return self.head(self.body(images).mean(dim=(2, 3)))


def draw(count, seed):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Network().eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize("toolkit", TOOLKITS)
def test_whatever_a_toolkit_exports_is_an_attack_or_named_with_its_reason(toolkit):
    known = TOOLKITS[toolkit]
    assert EXPORTED[toolkit] - known.methods.keys() - known.left_out.keys() == set()
    assert known.methods.keys() <= EXPORTED[toolkit]
    assert not known.methods.keys() & known.left_out.keys()
    assert all(known.left_out.values())


@pytest.mark.parametrize(("toolkit", "name"), METHODS)
def test_every_method_gives_a_map_for_each_image_and_leaves_nothing_behind(toolkit, name):
    model, images = network(), draw(3, 0)
    before = {entry: value.clone() for entry, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    method = ToolkitMethod(toolkit, name, LAYERS[TOOLKITS[toolkit].methods[name].reads])
    maps, again = (method.explain(model, images, torch.tensor([-1, 0, 1])).maps for _ in range(2))
    assert maps.shape[0] == 3
    assert bool(torch.isfinite(maps).all())
    assert bool((maps >= 0).all())
    assert bool((maps.amax(dim=(1, 2)) > 0).any())
    assert torch.equal(maps, again)
    assert all(torch.equal(value, before[entry]) for entry, value in model.state_dict().items())
    assert [type(module) for module in model.modules()] == kinds
    assert not any(module._forward_hooks or module._backward_hooks or module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("toolkit", "name"),
    [
        ("captum", "LayerGradientXActivation"),
        ("captum", "LayerFeatureAblation"),
        ("pytorch_grad_cam", "EigenGradCAM"),
        ("pytorch_grad_cam", "AblationCAM"),
    ],
)
def test_the_tokens_of_a_transformer_are_laid_out(toolkit, name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViT(num_classes=3, depth=2, width=24, heads=2).eval()
        nn.init.normal_(model.head.weight)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    layers = find_layers(model, images)
    maps = ToolkitMethod(toolkit, name, (layers.last,)).explain(model, images, torch.tensor([0, 1])).maps
    assert len(maps) == 2
    assert bool((maps.amax(dim=(1, 2)) > 0).any())


def test_a_method_that_refuses_a_network_says_so_in_its_own_words():
    class Unknown(nn.Module):
        def forward(self, images):
            return images.abs()

    model = nn.Sequential(Unknown(), network())
    with pytest.raises(InputError, match=r"LRP: .*has no rule defined"):
        ToolkitMethod("captum", "LRP").explain(model, draw(2, 0), torch.tensor([0, 0]))


@pytest.mark.parametrize(
    ("toolkit", "name", "layers"),
    [
        ("captum", "Saliency", ()),
        ("captum", "LayerFeatureAblation", ("body.2",)),
        ("captum", "LayerFeaturePermutation", ("body.2",)),
        ("pytorch_grad_cam", "GradCAM", ("body.2",)),
    ],
)
def test_a_method_is_compared_by_the_class_it_is_asked_for(toolkit, name, layers):
    model, images = network(), draw(4, 2)
    method = ToolkitMethod(toolkit, name, layers)
    first, second = (method.explain(model, images, torch.full((4,), target)).maps for target in (0, 3))
    assert not torch.allclose(first, second)


def test_the_tables_name_what_is_too_much_for_an_image():
    assert "language" in CAPTUM.left_out["LLMAttribution"]
    assert "AblationCAM" in PYTORCH_GRAD_CAM.left_out["AblationLayer"]
