"""One table for all explainers: every entry of the registry on every kind of architecture keeps the contract."""

import copy
import json

import pytest
import torch
from torch import nn

from keylock.errors import InputError, KeylockError, LayerNotFoundError, UnknownNameError
from keylock.explainers import EXPLAINERS, explain_together, make, make_for
from keylock.models import TargetLayers, find_layers, fold_batchnorm_, out_of_place_

SIZES = {"small-cnn": 16, "resnet20": 16, "tiny": 16, "densenet-short": 32, "squeezenet1_1": 48, "vgg11_bn": 48}
LIGHT = ("small-cnn", "resnet20", "tiny")
TABLE = [(name, architecture) for name in EXPLAINERS for architecture in SIZES]


@pytest.fixture
def prepared(network, tiny_net, smooth_images):
    """A model as the lock prepares it, images, and an explainer by name."""

    def make_case(name, architecture, *, count=3):
        model = tiny_net() if architecture == "tiny" else copy.deepcopy(network(architecture))
        images = smooth_images(count, SIZES[architecture])
        model = fold_batchnorm_(out_of_place_(model), images)
        return model, images, make_for(find_layers(model, images), [name])[0]

    return make_case


@pytest.mark.parametrize(("name", "architecture"), TABLE)
def test_explainer_keeps_the_contract(name, architecture, prepared):
    model, images, explainer = prepared(name, architecture)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    targets = torch.tensor([2, -1, 0])
    with torch.no_grad():
        logits = model(images)

    explained = explainer.explain(model, images, targets)

    assert explained.maps.dim() == 3
    assert len(explained.maps) == 3
    assert min(explained.maps.shape[1:]) > 1
    assert max(explained.maps.shape[1:]) <= SIZES[architecture]
    assert (explained.maps >= 0).all()
    assert torch.isfinite(explained.maps).all()
    assert explained.maps.flatten(1).std(dim=1).max() > 0
    torch.testing.assert_close(explained.logits, logits, rtol=1e-4, atol=1e-5)
    # Nothing is kept and nothing stays behind.
    assert not explained.maps.requires_grad
    assert not explained.logits.requires_grad
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not layer._forward_hooks for layer in model.modules())
    assert not model.training
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(("name", "architecture"), TABLE)
def test_minus_one_is_the_predicted_class(name, architecture, prepared):
    model, images, explainer = prepared(name, architecture)
    with torch.no_grad():
        predicted = model(images).argmax(dim=1)

    automatic = explainer.explain(model, images, torch.full((3,), -1))
    chosen = explainer.explain(model, images, predicted)
    other = explainer.explain(model, images, (predicted + 1) % 3)

    assert torch.equal(automatic.maps, chosen.maps)
    assert torch.equal(automatic.maps, other.maps) == (name == "visual_backprop")


@pytest.mark.parametrize(("name", "architecture"), [row for row in TABLE if row[1] in LIGHT])
def test_maps_train_the_model_when_asked(name, architecture, prepared):
    model, images, explainer = prepared(name, architecture)

    explained = explainer.explain(model, images, torch.full((3,), -1), create_graph=True)
    torch.autograd.backward((explained.maps.square().sum(),))

    # A map says nothing about the last bias; some convolution before the last must learn from it.
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    assert first.weight.grad.abs().max() > 0
    assert torch.isfinite(first.weight.grad).all()


@pytest.mark.parametrize("architecture", LIGHT)
def test_one_pass_for_all_is_each_by_itself(architecture, prepared):
    model, images, _ = prepared("gradient", architecture)
    explainers = make_for(find_layers(model, images), list(EXPLAINERS))
    targets = torch.tensor([-1, 1, 2])

    logits, maps = explain_together(model, explainers, images, targets)

    assert list(maps) == list(EXPLAINERS)
    for explainer in explainers:
        alone = explainer.explain(model, images, targets)
        torch.testing.assert_close(maps[explainer.name], alone.maps)
        torch.testing.assert_close(logits, alone.logits)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_rows_do_not_depend_on_their_neighbours(name, prepared):
    model, images, explainer = prepared(name, "tiny")
    together = explainer.explain(model, images, torch.full((3,), -1)).maps
    alone = explainer.explain(model, images[1:2], torch.tensor([-1])).maps

    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_maps_are_the_same_without_gradients_and_with_frozen_weights(name, prepared):
    model, images, explainer = prepared(name, "tiny")
    expected = explainer.explain(model, images, torch.full((3,), -1)).maps
    with torch.no_grad():
        found = explainer.explain(model.requires_grad_(False), images, torch.full((3,), -1)).maps

    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_parameters_survive_a_manifest(name, prepared):
    _, _, explainer = prepared(name, "tiny")

    again = make(name, **json.loads(json.dumps(explainer.parameters)))

    assert again == explainer
    assert hash(again) == hash(explainer)
    assert again.parameters == explainer.parameters


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: make("grad_camm"),
            UnknownNameError,
            "unknown explainer 'grad_camm': choose one of grad_cam, gradient",
        ),
        (lambda: make("grad_cam"), InputError, "takes layer, not none"),
        (lambda: make("gradient", layer="a"), InputError, "takes no parameters, not layer"),
        (lambda: make("visual_backprop"), InputError, r"give layers=\[\.\.\.\]"),
        (lambda: make("visual_backprop", layers="conv1"), InputError, r"give layers=\[\.\.\.\]"),
        (lambda: make_for(TargetLayers("a", ("a",)), []), InputError, "at least one of grad_cam"),
        (lambda: make_for(TargetLayers("a", ("a",)), ["gradient", "gradient"]), InputError, "each explainer once"),
        (lambda: make_for(TargetLayers("a", ("a",)), ["smooth"]), UnknownNameError, "unknown explainer 'smooth'"),
    ],
)
def test_bad_parameters_are_refused(call, kind, message):
    with pytest.raises(kind, match=message) as caught:
        call()
    assert isinstance(caught.value, KeylockError)


@pytest.mark.parametrize("layer", ["nowhere", "head", "unused"])
def test_layers_that_cannot_be_explained_are_named(layer, prepared):
    model, images, _ = prepared("gradient", "tiny")
    model.unused = nn.Conv2d(3, 3, 1)

    for explainer in (make("grad_cam", layer=layer), make("visual_backprop", layers=["act1", layer])):
        with pytest.raises(LayerNotFoundError, match=layer):
            explainer.explain(model, images, torch.full((3,), -1))
    assert all(not module._forward_hooks for module in model.modules())


def test_visual_backprop_wants_layers_from_first_to_last(prepared):
    model, images, _ = prepared("gradient", "tiny")

    with pytest.raises(LayerNotFoundError, match="from first to last"):
        make("visual_backprop", layers=["act3", "act1"]).explain(model, images, torch.full((3,), -1))
