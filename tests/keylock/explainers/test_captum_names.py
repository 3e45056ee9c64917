"""Attributions of Captum as explainers by name: all of them, and clear words where a name is not enough."""

import copy

import pytest
import torch
from torch import nn

from keylock.bundle import ExplainerEntry
from keylock.errors import InputError, LayerNotFoundError, ModelError, UnknownNameError
from keylock.evaluation import select
from keylock.explainers import Family, expand_names, explainer_kind, keyed_inputs, make, make_for
from keylock.explainers.toolkits import CAPTUM, CAPTUM_NAMES
from keylock.models import find_layers, prepare

attr = pytest.importorskip("captum.attr")
pytest.importorskip("sklearn")


class Plain(nn.Module):
    """Without branches, so that every method takes it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 6, 4, stride=2, padding=1), nn.ReLU()
        )
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 4)

    def forward(self, images):
        return self.head(self.pool(self.body(images)).flatten(1))


@pytest.fixture
def plain():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = Plain().eval()
        nn.init.normal_(model.head.weight, std=40)
    return model


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CAPTUM_NAMES)
def test_every_name_is_an_explainer_that_keeps_the_contract(name, plain, images):
    [explainer] = make_for(find_layers(plain, images), [name])
    targets = torch.tensor([1, -1, 0])
    explained = explainer.explain(plain, images, targets)
    assert explainer.name == name
    assert explained.maps.shape[0] == 3
    assert explained.maps.dim() == 3
    assert bool((explained.maps >= 0).all())
    assert bool(explained.maps.any())
    torch.testing.assert_close(explained.logits, plain(images).detach(), rtol=1e-4, atol=1e-5)
    again = make(name, **explainer.parameters).explain(plain, images, targets)
    assert torch.equal(again.maps, explained.maps)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())
    entry = ExplainerEntry(name=name, parameters=explainer.parameters, runtime="torch")
    assert ExplainerEntry.model_validate_json(entry.model_dump_json()) == entry


def test_every_method_of_captum_is_a_name_or_refused_in_words():
    for method in attr.__all__:
        name = f"captum:{method}"
        if name in CAPTUM_NAMES:
            assert explainer_kind(name).name == name
            continue
        with pytest.raises(InputError, match=rf"^{name} (is no explainer of images: in Captum it is|needs a neuron)"):
            explainer_kind(name)
    assert len(CAPTUM_NAMES) > 25
    assert {f"captum:{method}" for method in CAPTUM.methods} > set(CAPTUM_NAMES)


@pytest.mark.filterwarnings("ignore:Setting")
def test_maps_are_those_of_captum(plain, images):
    targets = torch.tensor([1, 2, 0])
    maps = make("captum:DeepLift").explain(plain, images, targets).maps
    expected = attr.DeepLift(plain).attribute(images.clone().requires_grad_(), target=targets)
    torch.testing.assert_close(maps, expected.sum(dim=1).abs().detach(), rtol=1e-4, atol=1e-6)
    maps = make("captum:LayerGradCam", layer="body.2").explain(plain, images, targets).maps
    expected = attr.LayerGradCam(plain, plain.body[2]).attribute(images.clone().requires_grad_(), target=targets)
    torch.testing.assert_close(maps, expected.sum(dim=1).relu().detach(), rtol=1e-4, atol=1e-6)


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(UnknownNameError, match="'captum:DeepLft': choose one of captum:Deconvolution"):
        make("captum:DeepLft")
    with pytest.raises(UnknownNameError, match=r"unknown explainer 'deeplift': choose one of .*captum:METHOD"):
        make("deeplift")
    with pytest.raises(InputError, match="captum:DeepLift' takes no parameters, not steps"):
        make("captum:DeepLift", steps=3)
    with pytest.raises(InputError, match=r"needs a neuron \(neuron_selector\), which a name cannot give"):
        make("captum:NeuronGradient")


def test_they_are_offered_and_cannot_be_locked_alone():
    assert expand_names(["grad_cam", "captum:DeepLift"]) == ("grad_cam", "captum:DeepLift")
    with pytest.raises(InputError, match="at least one of"):
        expand_names(["captum:DeepLift"])
    assert explainer_kind("captum:Occlusion").family is Family.PERTURBATION


def test_an_evaluation_takes_them_by_name(plain, images):
    selection = select(plain, {}, images, names=("captum:DeepLift", "captum:LayerGradCam"))
    assert list(selection.unseen) == ["captum:DeepLift", "captum:LayerGradCam"]
    with pytest.raises(UnknownNameError, match="captum:Saliency"):
        select(plain, {}, images, names=("captum:none",))


@pytest.mark.parametrize("name", ["captum:GuidedBackprop", "captum:Deconvolution"])
def test_a_rule_for_relu_is_refused_where_there_is_none(name, images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(ModelError, match=r"has a rule for nn\.ReLU alone, and this network has none"):
        make(name).explain(model, images, torch.zeros(3, dtype=torch.int64))


def test_relevance_that_multiplies_at_additions_is_refused(network, images):
    model = prepare(network("resnet20"), images)
    with pytest.raises(ModelError, match="take lrp, which does"):
        make("captum:LRP").explain(model, images, torch.full((3,), -1))


def test_a_layer_that_is_not_there_is_refused(plain, images):
    with pytest.raises(LayerNotFoundError, match="the model has no layer 'nowhere'"):
        make("captum:LayerGradCam", layer="nowhere").explain(plain, images, torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("name", CAPTUM_NAMES)
def test_every_name_explains_a_network_with_a_key_on_its_inputs(name, plain, images):
    """A key that moves the first bias by as much makes the same network of it, whatever a method shows it."""
    [explainer] = make_for(find_layers(plain, images), [name])
    shifted, offset, targets = copy.deepcopy(plain), torch.full((3, 16, 16), 0.1), torch.tensor([1, 2, 0])
    with torch.no_grad():
        weights = shifted.body[0].weight
        shifted.body[0].bias += 0.1 * weights.sum(dim=(1, 2, 3))
        plain.body[0].padding = shifted.body[0].padding = 0
    with keyed_inputs(plain, offset):
        keyed = explainer.explain(plain, images, targets).maps
    expected = explainer.explain(shifted, images, targets).maps
    if name.endswith("LRP"):
        # What the bias absorbs there is relevance that reaches the key here.
        assert keyed.shape == expected.shape
        return
    torch.testing.assert_close(keyed, expected, rtol=1e-3, atol=1e-3 * float(expected.max()))
