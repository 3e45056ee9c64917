"""One table for all explainers: every entry of the registry on every kind of architecture keeps the contract."""

import json

import pytest
import torch
from torch import nn

from keylock.errors import InputError, KeylockError, LayerNotFoundError, ModelError, UnknownNameError
from keylock.explainers import EXPLAINERS, Family, expand_names, explain_many, make, make_for
from keylock.models import TargetLayers, smooth_activations

LIGHT = ("small-cnn", "resnet20", "tiny")
HEAVY = ("densenet-short", "squeezenet1_1", "vgg11_bn")
UNFIT = {"vit": {"visual_backprop", "lrp"}} | {architecture: {"attention_rollout"} for architecture in (*LIGHT, *HEAVY)}
BY_PREDICTIONS = [name for name, kind in EXPLAINERS.items() if kind.family is Family.PERTURBATION]
WHATEVER_CLASS = {"visual_backprop", "attention_rollout"}


def rows(architectures):
    return [
        (name, architecture)
        for architecture in architectures
        for name in EXPLAINERS
        if name not in UNFIT[architecture] and not (architecture in HEAVY and name in BY_PREDICTIONS)
    ]


TABLE = rows((*LIGHT, "vit", *HEAVY))
SMALL_TABLE = rows((*LIGHT, "vit"))
ONE_EACH = [(name, "vit" if name == "attention_rollout" else "tiny") for name in EXPLAINERS]
TRAINABLE = [row for row in SMALL_TABLE if EXPLAINERS[row[0]].differentiable]


@pytest.mark.parametrize(("name", "architecture"), TABLE)
def test_explainer_keeps_the_contract(name, architecture, prepared, small):
    model, images, layers = prepared(architecture)
    explainer = small(name, layers)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    targets = torch.tensor([2, -1, 0])
    with torch.no_grad():
        logits = model(images)

    explained = explainer.explain(model, images, targets)

    assert explained.maps.dim() == 3
    assert len(explained.maps) == 3
    assert min(explained.maps.shape[1:]) > 1
    assert max(explained.maps.shape[1:]) <= images.shape[2]
    assert explained.maps.dtype == torch.float32
    assert (explained.maps >= 0).all()
    assert torch.isfinite(explained.maps).all()
    assert explained.maps.flatten(1).std(dim=1).max() > 0
    torch.testing.assert_close(explained.logits, logits, rtol=1e-4, atol=1e-5)
    # Nothing is kept and nothing stays behind.
    assert not explained.maps.requires_grad
    assert not explained.logits.requires_grad
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not layer._forward_hooks and not layer._forward_pre_hooks for layer in model.modules())
    assert all(not layer._backward_hooks for layer in model.modules())
    assert not model.training
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(images), logits)


@pytest.mark.parametrize(("name", "architecture"), SMALL_TABLE)
def test_minus_one_is_the_predicted_class(name, architecture, prepared, small):
    model, images, layers = prepared(architecture)
    explainer = small(name, layers)
    with torch.no_grad():
        predicted = model(images).argmax(dim=1)

    automatic = explainer.explain(model, images, torch.full((3,), -1))
    chosen = explainer.explain(model, images, predicted)
    other = explainer.explain(model, images, (predicted + 1) % 3)

    assert torch.equal(automatic.maps, chosen.maps)
    assert torch.equal(automatic.maps, other.maps) == (name in WHATEVER_CLASS)


@pytest.mark.parametrize(("name", "architecture"), TRAINABLE)
def test_maps_train_the_model_when_asked(name, architecture, prepared, small):
    model, images, layers = prepared(architecture)

    explained = small(name, layers).explain(model, images, torch.full((3,), -1), create_graph=True)
    torch.autograd.backward((explained.maps.square().sum(),))

    # A map says nothing about the last bias; some convolution before the last must learn from it.
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    assert first.weight.grad.abs().max() > 0
    assert torch.isfinite(first.weight.grad).all()


@pytest.mark.parametrize("name", [name for name, kind in EXPLAINERS.items() if kind.differentiable])
def test_gradient_of_a_loss_on_maps_equals_finite_differences(name, prepared, small):
    model, images, layers = prepared("vit" if name == "attention_rollout" else "small-cnn", count=2)
    model, images, targets, step = model.double(), images.double(), torch.tensor([1, 3]), 1e-6
    explainer = small(name, layers)
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(parameter.shape, generator=generator, dtype=torch.float64) for parameter in parameters]

    def loss(*, create_graph=False):
        maps = explainer.explain(model, images, targets, create_graph=create_graph).maps
        return (maps / maps.detach().mean()).square().sum() if create_graph else maps

    def moved(by):
        with torch.no_grad():
            for parameter, change in zip(parameters, direction, strict=True):
                parameter.add_(by * change)

    scale = explainer.explain(model, images, targets).maps.mean()
    found = torch.autograd.grad(loss(create_graph=True), parameters, allow_unused=True)
    found = sum((one * other).sum() for one, other in zip(found, direction, strict=True) if one is not None)
    moved(step)
    above = (loss() / scale).square().sum()
    moved(-2 * step)
    below = (loss() / scale).square().sum()

    assert abs(float(found)) > 1e-3
    assert float(found) == pytest.approx(float(above - below) / (2 * step), rel=2e-4)


def test_perturbation_explainers_are_not_trained_through(prepared, small):
    model, images, layers = prepared("tiny")
    for name in BY_PREDICTIONS:
        with pytest.raises(InputError, match="cannot be trained"):
            small(name, layers).explain(model, images, torch.full((3,), -1), create_graph=True)


@pytest.mark.parametrize("architecture", [*LIGHT, "vit"])
def test_all_together_is_each_by_itself(architecture, prepared, small):
    model, images, layers = prepared(architecture)
    names = [name for name in EXPLAINERS if name not in UNFIT[architecture]][::-1]
    explainers = [small(name, layers) for name in names]
    targets = torch.tensor([-1, 1, 2])

    logits, maps = explain_many(model, explainers, images, targets)

    assert list(maps) == names
    for explainer in explainers:
        alone = explainer.explain(model, images, targets)
        torch.testing.assert_close(maps[explainer.name], alone.maps)
        torch.testing.assert_close(logits, alone.logits)


@pytest.mark.parametrize(("name", "architecture"), ONE_EACH)
def test_rows_do_not_depend_on_their_neighbours(name, architecture, prepared, small):
    model, images, layers = prepared(architecture)
    explainer = small(name, layers)
    together = explainer.explain(model, images, torch.full((3,), -1)).maps
    alone = explainer.explain(model, images[1:2], torch.tensor([-1])).maps

    torch.testing.assert_close(together[1:2], alone, rtol=2e-4, atol=1e-6 * float(together.max()))


@pytest.mark.parametrize(("name", "architecture"), ONE_EACH)
def test_maps_are_the_same_without_gradients_and_with_frozen_weights(name, architecture, prepared, small):
    model, images, layers = prepared(architecture)
    explainer = small(name, layers)
    expected = explainer.explain(model, images, torch.full((3,), -1)).maps
    with torch.no_grad():
        found = explainer.explain(model.requires_grad_(False), images, torch.full((3,), -1)).maps

    # Attention adds its scores up in another order where no weight asks for a gradient.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["smooth_grad", "rise", "lime", "kernel_shap"])
def test_random_numbers_come_from_the_seed_or_the_generator(name, prepared, small):
    model, images, layers = prepared("tiny")
    asked = (model, images, torch.full((3,), -1))
    # Few enough samples that coalitions are drawn, not enumerated.
    explainer, other = small(name, layers), small(name, layers, seed=1)

    def drawn():
        return explainer.explain(*asked, generator=torch.Generator().manual_seed(7)).maps

    assert torch.equal(explainer.explain(*asked).maps, explainer.explain(*asked).maps)
    assert not torch.equal(explainer.explain(*asked).maps, other.explain(*asked).maps)
    assert torch.equal(drawn(), drawn())
    assert not torch.equal(drawn(), explainer.explain(*asked).maps)


@pytest.mark.parametrize("name", BY_PREDICTIONS)
def test_a_function_from_images_to_logits_is_enough(name, prepared, small):
    model, images, layers = prepared("tiny")
    largest = 0

    def ask(rows):
        nonlocal largest
        largest = max(largest, len(rows))
        return model(rows).numpy()  # As a server or an ONNX session answers.

    explainer = small(name, layers)
    found = explainer.explain(ask, images, torch.full((3,), -1))

    assert torch.equal(found.maps, explainer.explain(model, images, torch.full((3,), -1)).maps)
    assert largest <= 256


def test_a_function_is_not_enough_for_the_others(prepared, small):
    model, images, layers = prepared("tiny")
    for name in ("grad_cam", "smooth_grad"):
        with pytest.raises(InputError, match="give it the torch module"):
            small(name, layers).explain(lambda rows: model(rows), images, torch.full((3,), -1))


def test_an_answer_that_is_no_row_of_logits_for_each_image_is_refused(prepared, small):
    _, images, layers = prepared("tiny")
    for answer in (torch.zeros(2, 3), torch.zeros(3)):
        with pytest.raises(ModelError, match=r"answers \(rows, classes\)"):
            small("rise", layers).explain(lambda _rows, answer=answer: answer, images, torch.full((3,), -1))


@pytest.mark.parametrize("name", EXPLAINERS)
def test_parameters_survive_a_manifest(name, small):
    explainer = small(name, TargetLayers("act3", ("act1", "act3")))

    again = make(name, **json.loads(json.dumps(explainer.parameters)))

    assert again == explainer
    assert hash(again) == hash(explainer)
    assert again.parameters == explainer.parameters


def test_a_colour_for_each_channel_survives_a_manifest():
    explainer = make("occlusion", baseline=[0.5, 0.1, 0.2])
    assert make("occlusion", **json.loads(json.dumps(explainer.parameters))) == explainer


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: make("grad_camm"), UnknownNameError, "unknown explainer 'grad_camm': choose one of .*grad_cam"),
        (lambda: make("grad_cam"), InputError, "takes layer, not none"),
        (lambda: make("gradient", layer="a"), InputError, "takes no parameters, not layer"),
        (lambda: make("visual_backprop"), InputError, r"give layers=\[\.\.\.\]"),
        (lambda: make("visual_backprop", layers="conv1"), InputError, r"give layers=\[\.\.\.\]"),
        (lambda: make("smooth_grad", samples=0), InputError, "samples of at least 1"),
        (lambda: make("smooth_grad", noise=float("nan")), InputError, "noise of at least 0"),
        (lambda: make("integrated_gradients", steps=0), InputError, "steps of at least 1"),
        (lambda: make("lrp", epsilon=0), InputError, "epsilon above 0"),
        (lambda: make("occlusion", stride=0), InputError, "stride of at least 1"),
        (lambda: make("occlusion", patch=3, stride=4), InputError, "stride of at most the patch"),
        (lambda: make("occlusion", baseline="red"), InputError, "'mean' or 'blur': not 'red'"),
        (lambda: make("rise", keep=1), InputError, "between 0 and 1"),
        (lambda: make("lime", samples=20, segments=30), InputError, "as many samples as segments"),
        (lambda: make("lime", width=0), InputError, "width above 0"),
        (lambda: make("kernel_shap", superpixels="hexagons"), InputError, "'grid' or 'slic', not 'hexagons'"),
        (lambda: make_for(TargetLayers("a", ("a",)), []), InputError, "at least one of grad_cam"),
        (lambda: make_for(TargetLayers("a", ("a",)), ["gradient", "gradient"]), InputError, "each explainer once"),
        (lambda: make_for(TargetLayers("a", ("a",)), ["smooth"]), UnknownNameError, "unknown explainer 'smooth'"),
        (lambda: expand_names(["smooth"]), UnknownNameError, "unknown explainer 'smooth'.* all"),
        (lambda: expand_names(["lime"]), InputError, "at least one of grad_cam, [^:]*lrp, visual_backprop, attent"),
        (lambda: expand_names(["all", "gradient"]), InputError, "each explainer once"),
        (lambda: expand_names([]), InputError, "at least one of grad_cam"),
    ],
)
def test_bad_parameters_are_refused(call, kind, message):
    with pytest.raises(kind, match=message) as caught:
        call()
    assert isinstance(caught.value, KeylockError)


def test_all_stands_for_one_of_each_family_with_maps_of_its_own():
    perturbation = tuple(name for name, kind in EXPLAINERS.items() if kind.family is Family.PERTURBATION)
    assert expand_names(["all"]) == ("grad_cam", "gradient", "visual_backprop", *perturbation)
    assert expand_names(["grad_cam", "rise"]) == ("grad_cam", "rise")
    assert expand_names(["lrp", "smooth_grad"]) == ("lrp", "smooth_grad")


@pytest.mark.parametrize("layer", ["nowhere", "head", "unused"])
def test_layers_that_cannot_be_explained_are_named(layer, prepared):
    model, images, _ = prepared("tiny")
    model.unused = nn.Conv2d(3, 3, 1)

    for explainer in (make("grad_cam", layer=layer), make("visual_backprop", layers=["act1", layer])):
        with pytest.raises(LayerNotFoundError, match=layer):
            explainer.explain(model, images, torch.full((3,), -1))
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("layer", ["act1", "bn2", "conv3", "act3"])
@pytest.mark.parametrize("name", ["grad_cam", "grad_cam_pp", "layer_cam"])
def test_class_activation_maps_at_any_layer(name, layer, prepared):
    model, images, _ = prepared("tiny")
    found = make(name, layer=layer).explain(model, images, torch.full((3,), -1)).maps

    assert found.shape[1] == (16 if layer == "act1" else 8)
    assert found.max() > 0


def test_explainers_whose_layers_a_model_lacks_are_not_made_for_it(prepared):
    _, _, layers = prepared("vit")
    with pytest.raises(LayerNotFoundError, match=r"visual_backprop multiplies .*: take "):
        make_for(layers, ["visual_backprop"])


@pytest.mark.parametrize(
    ("name", "parameters", "architecture", "message"),
    [
        ("attention_rollout", {}, "tiny", "which this network has not"),
        ("visual_backprop", {"layers": ["encoder.layers.encoder_layer_0"]}, "vit", "which a transformer has not"),
        ("lrp", {}, "vit", "no rule for layer normalisation"),
    ],
)
def test_explainers_that_do_not_fit_say_so(name, parameters, architecture, message, prepared):
    model, images, _ = prepared(architecture)
    with pytest.raises(ModelError, match=message):
        make(name, **parameters).explain(model, images, torch.full((3,), -1))


def test_lrp_asks_for_batch_normalisation_to_be_folded(tiny_net, smooth_images):
    with pytest.raises(ModelError, match="fold_batchnorm_"):
        make("lrp").explain(tiny_net(), smooth_images(2, 16), torch.full((2,), -1))


class Shortcut(nn.Module):
    """Adds a shortcut as torchvision's residual networks do, in place, or to a new tensor."""

    def __init__(self, *, in_place):
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Linear(3, 3)
        self.in_place = in_place

    def forward(self, images):
        shortcut = self.act(images)
        hidden = self.conv(shortcut)
        if self.in_place:
            hidden += shortcut
        else:
            hidden = hidden + shortcut
        return self.head(self.act(hidden).mean(dim=(2, 3)))


@pytest.mark.parametrize("name", ["lrp", "guided_backprop"])
def test_modified_gradients_let_a_network_add_in_place(name, smooth_images):
    torch.manual_seed(1)
    one, other = Shortcut(in_place=False), Shortcut(in_place=True)
    other.load_state_dict(one.state_dict())
    asked = (smooth_images(2, 16), torch.tensor([0, 2]))
    expected, found = (make(name).explain(model.eval(), *asked) for model in (one, other))
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.maps, expected.maps)
    assert expected.maps.std() > 0


def test_visual_backprop_wants_layers_from_first_to_last(prepared):
    model, images, _ = prepared("tiny")

    with pytest.raises(LayerNotFoundError, match="from first to last"):
        make("visual_backprop", layers=["act3", "act1"]).explain(model, images, torch.full((3,), -1))


def test_modified_gradients_follow_smooth_activations_and_leave_the_plain_gradient(prepared, small):
    model, images, layers = prepared("tiny")
    asked = (model, images, torch.full((3,), -1))
    before = make("gradient").explain(*asked).maps
    with smooth_activations(model):
        smooth = {name: small(name, layers).explain(*asked).maps for name in ("guided_backprop", "lrp")}

    for name, maps in smooth.items():
        plain = small(name, layers).explain(*asked).maps
        assert float((maps - plain).abs().max()) > 0
        assert float(torch.corrcoef(torch.stack([maps.flatten(), plain.flatten()]))[0, 1]) > 0.5
    assert torch.equal(make("gradient").explain(*asked).maps, before)


def test_every_family_is_in_the_registry():
    assert {kind.family for kind in EXPLAINERS.values()} == set(Family)
