"""Each explainer against a second implementation: Captum, finite differences, loops in NumPy."""

import itertools

import numpy as np
import pytest
import torch
from captum.attr import LRP, GuidedBackprop, InputXGradient, IntegratedGradients, LayerGradCam, Saliency
from captum.attr._utils.lrp_rules import EpsilonRule
from torch import nn
from torchvision.models import SwinTransformer

from keylock.errors import LayerNotFoundError
from keylock.explainers import ClassActivations, make, make_for
from keylock.explainers.lrp import _slope_from_zero
from keylock.explainers.modified_backward import Rules, modified_gradient
from keylock.explainers.passes import Run
from keylock.explainers.tokens import require_patch_grid
from keylock.iterative.drawing import source_of
from keylock.models import capture_outputs, find_layers, out_of_place_
from keylock.models.vit import ViT

ARCHITECTURES = ("small-cnn", "resnet20", "densenet-short", "squeezenet1_1")
TARGETS = torch.tensor([4, 0, 9])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_grad_cam_equals_captum(architecture, prepared):
    model, images, layers = prepared(architecture)
    (explainer,) = make_for(layers, ["grad_cam"])
    if architecture == "densenet-short":
        # Its last layer is rectified in place, where Captum reads what was there before.
        explainer = make("grad_cam", layer="features.denseblock2.denselayer2.conv2")

    found = explainer.explain(model, images, TARGETS).maps
    layer = model.get_submodule(explainer.layer)
    expected = LayerGradCam(model, layer).attribute(images, TARGETS, relu_attributions=True)

    torch.testing.assert_close(found, expected[:, 0].detach(), rtol=1e-4, atol=1e-7)
    assert found.max() > 0


@pytest.mark.parametrize("architecture", ["small-cnn", "resnet20"])
def test_class_activations_add_up_to_the_logits_where_the_head_is_a_mean_and_a_linear_layer(architecture, prepared):
    model, images, layers = prepared(architecture)
    classes = (7, 0, 2)
    found = ClassActivations(layers.last, classes).explain(model, images, TARGETS).maps
    with torch.no_grad():
        logits = model(images) - model.linear.bias
    torch.testing.assert_close(found.sum(dim=(2, 3)), logits[:, list(classes)], rtol=1e-4, atol=1e-5)
    assert found.min() < 0
    # Before its ReLU, this is Grad-CAM there.
    for place, label in enumerate(classes):
        rectified = make("grad_cam", layer=layers.last).explain(model, images, torch.full_like(TARGETS, label)).maps
        torch.testing.assert_close(found[:, place].relu(), rectified, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("architecture", ["squeezenet1_1", "vit"])
def test_class_activations_of_other_heads_do_not_depend_on_the_class_that_is_explained(architecture, prepared):
    model, images, layers = prepared(architecture)
    one = ClassActivations(layers.last, (7, 0, 2))
    found, again = (one.explain(model, images, targets).maps for targets in (TARGETS, TARGETS.flip(0)))
    torch.testing.assert_close(found, again)
    assert found.shape[:2] == (len(images), 3)
    assert (found[:, 0] - found[:, 1]).abs().max() > 0


@pytest.mark.parametrize("layer", ["stage1.2", "stage2.3", "stage3.2", "stage3.11"])
def test_grad_cam_at_any_layer_equals_captum(layer, prepared):
    model, images, _ = prepared("small-cnn")

    found = make("grad_cam", layer=layer).explain(model, images, TARGETS).maps
    expected = LayerGradCam(model, model.get_submodule(layer)).attribute(images, TARGETS, relu_attributions=True)

    torch.testing.assert_close(found, expected[:, 0].detach(), rtol=1e-4, atol=1e-7)


def features_and_gradient(model, images, layer):
    """A layer's output and the target logit's gradient there, by a hook, as NumPy arrays (batch, channels, h, w)."""
    kept = {}

    def keep(_module, _inputs, output):
        output.retain_grad()
        kept["features"] = output

    handle = model.get_submodule(layer).register_forward_hook(keep)
    torch.autograd.backward((model(images).gather(1, TARGETS.unsqueeze(1)).sum(),))
    handle.remove()
    features = kept["features"]
    return features.detach().double().numpy(), features.grad.double().numpy()


@pytest.mark.parametrize("architecture", ["resnet20", "squeezenet1_1"])
def test_grad_cam_pp_equals_the_papers_formula_in_loops(architecture, prepared):
    model, images, layers = prepared(architecture)
    layer = layers.stack[len(layers.stack) // 2]
    features, gradient = features_and_gradient(model, images, layer)
    expected = np.zeros((len(features), *features.shape[2:]))
    for row, channel in np.ndindex(features.shape[:2]):
        g, total = gradient[row, channel], features[row, channel].sum()
        weight = 0.0
        for place in np.ndindex(g.shape):
            if g[place] > 0:
                weight += g[place] * g[place] ** 2 / (2 * g[place] ** 2 + total * g[place] ** 3)
        expected[row] += weight * features[row, channel]

    found = make("grad_cam_pp", layer=layer).explain(model, images, TARGETS).maps.numpy()

    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-3, atol=1e-7)
    assert found.max() > 0


@pytest.mark.parametrize("architecture", ["resnet20", "squeezenet1_1"])
def test_layer_cam_equals_the_papers_formula_in_loops(architecture, prepared):
    model, images, layers = prepared(architecture)
    layer = layers.stack[len(layers.stack) // 2]
    features, gradient = features_and_gradient(model, images, layer)
    expected = np.zeros((len(features), *features.shape[2:]))
    for row, channel, y, x in np.ndindex(features.shape):
        expected[row, y, x] += max(gradient[row, channel, y, x], 0) * features[row, channel, y, x]

    found = make("layer_cam", layer=layer).explain(model, images, TARGETS).maps.numpy()

    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-3, atol=1e-7)
    assert found.max() > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_equals_captum(architecture, prepared):
    model, images, _ = prepared(architecture)

    found = make("gradient").explain(model, images, TARGETS).maps
    expected = Saliency(model).attribute(images.clone().requires_grad_(), TARGETS, abs=True)

    torch.testing.assert_close(found, expected.mean(dim=1).detach(), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("architecture", ["resnet20", "squeezenet1_1"])
def test_input_x_gradient_equals_captum(architecture, prepared):
    model, images, _ = prepared(architecture)

    found = make("input_x_gradient").explain(model, images, TARGETS).maps
    expected = InputXGradient(model).attribute(images.clone().requires_grad_(), TARGETS)

    torch.testing.assert_close(found, expected.sum(dim=1).abs().detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
@pytest.mark.parametrize("architecture", ["squeezenet1_1", "vgg11_bn"])
def test_guided_backprop_equals_captum(architecture, prepared):
    # Networks whose ReLUs are modules that run once: Captum hooks modules, and sees no others.
    model, images, _ = prepared(architecture)

    found = make("guided_backprop").explain(model, images, TARGETS).maps
    expected = GuidedBackprop(model).attribute(images.clone().requires_grad_(), TARGETS)

    torch.testing.assert_close(found, expected.abs().mean(dim=1).detach(), rtol=1e-4, atol=1e-8)
    plain = make("gradient").explain(model, images, TARGETS).maps
    assert not torch.allclose(found, plain, rtol=0.1)


def test_guided_backprop_sees_activations_whatever_calls_them(smooth_images):
    class Calls(nn.Module):
        def __init__(self, activation):
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)
            self.activation = activation

        def forward(self, images):
            hidden = self.activation(self.second(self.activation(self.first(images))))
            return self.head(hidden.mean(dim=(2, 3)))

    images = smooth_images(3, 12)
    maps = []
    for activation in (
        *(nn.ReLU(), nn.ReLU(inplace=True), nn.functional.relu, torch.relu, torch.Tensor.relu, torch.relu_),
        *(
            lambda hidden: nn.functional.relu(hidden, inplace=True),
            lambda hidden: nn.functional.leaky_relu(hidden, 0.0),
        ),
    ):
        torch.manual_seed(0)
        maps.append(make("guided_backprop").explain(Calls(activation), images, TARGETS).maps)
    torch.manual_seed(0)
    plain = make("gradient").explain(Calls(nn.ReLU()), images, TARGETS).maps

    for other in maps[1:]:
        torch.testing.assert_close(other, maps[0])
    assert not torch.allclose(plain, maps[0], rtol=0.1)


@pytest.mark.parametrize("architecture", ["small-cnn", "resnet20"])
def test_integrated_gradients_equal_captum(architecture, prepared):
    model, images, _ = prepared(architecture)

    found = make("integrated_gradients", steps=6, baseline=-0.5).explain(model, images, TARGETS).maps
    expected = IntegratedGradients(model).attribute(
        images, torch.full_like(images, -0.5), TARGETS, n_steps=6, method="riemann_middle"
    )

    torch.testing.assert_close(found, expected.sum(dim=1).abs().float(), rtol=1e-3, atol=1e-6)


class Plain(nn.Module):
    """Modules that Captum has rules for, each called once, and no module of another kind."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU()),
            nn.AvgPool2d(2),
        )
        self.head = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, images):
        return self.head(self.features(images).flatten(1))


@pytest.mark.parametrize("epsilon", [1e-3, 0.3])
def test_lrp_equals_captum(epsilon, smooth_images):
    torch.manual_seed(2)
    model = Plain().eval()
    images = smooth_images(3, 12)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.rule = EpsilonRule(epsilon)
        elif isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
            layer.rule = EpsilonRule(1e-9)
    expected = LRP(model).attribute(images.clone().requires_grad_(), TARGETS).detach().sum(dim=1).abs()

    found = make("lrp", epsilon=epsilon).explain(model, images, TARGETS).maps

    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    plain = make("input_x_gradient").explain(model, images, TARGETS).maps
    assert torch.allclose(plain, found, rtol=0.1, atol=0.1 * float(plain.max())) == (epsilon < 0.1)


def test_lrp_of_a_gate_is_that_of_a_constant_factor(smooth_images):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.signal, self.gate, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3), nn.Linear(6, 10)
            self.constant = None

        def forward(self, images):
            factor = torch.sigmoid(self.gate(images)) if self.constant is None else self.constant
            return self.head((torch.relu(self.signal(images)) * factor).mean(dim=(2, 3)))

    torch.manual_seed(0)
    model, images = Gated(), smooth_images(3, 12)
    found = make("lrp").explain(model, images, TARGETS).maps
    model.constant = torch.sigmoid(model.gate(images)).detach()

    torch.testing.assert_close(found, make("lrp").explain(model, images, TARGETS).maps)


def test_relevance_without_biases_adds_up_to_the_score(prepared):
    model, images, _ = prepared("resnet20")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    explainer = make("lrp", epsilon=1e-9)
    rules = Rules(activation=_slope_from_zero, linear=explainer._stabilised)

    found = modified_gradient(Run(model, images, TARGETS, model(images).detach()), rules)

    scores = model(images).gather(1, TARGETS.unsqueeze(1)).squeeze(1).detach()
    torch.testing.assert_close((found * images).sum(dim=(1, 2, 3)), scores, rtol=1e-3, atol=1e-5)


def test_smooth_grad_is_the_mean_gradient_of_noisy_images(prepared):
    model, images, _ = prepared("resnet20")
    source, total = source_of(5), np.zeros(images.shape)
    for _ in range(4):
        noise = torch.from_numpy(source.standard_normal((3, 16, 16)).astype(np.float32))
        for row, image in enumerate(images):
            noisy = (image + 0.2 * (image.max() - image.min()) * noise).unsqueeze(0).requires_grad_()
            total[row] += Saliency(model).attribute(noisy, TARGETS[row : row + 1], abs=False)[0].detach().numpy() / 4

    found = make("smooth_grad", samples=4, noise=0.2, seed=5).explain(model, images, TARGETS).maps

    np.testing.assert_allclose(found.numpy(), np.abs(total).mean(axis=1), rtol=1e-3, atol=1e-7)


def test_smooth_grad_without_noise_is_the_gradient(prepared):
    model, images, _ = prepared("resnet20")

    found = make("smooth_grad", samples=2, noise=0).explain(model, images, TARGETS).maps

    torch.testing.assert_close(found, make("gradient").explain(model, images, TARGETS).maps)


def test_gradient_equals_finite_differences(prepared):
    model, images, _ = prepared("small-cnn", count=1)
    model, images, target, step = model.double(), images.double(), 2, 1e-5
    expected = np.zeros((3, 16, 16))
    with torch.no_grad():
        for channel in range(3):
            # One batch holds the steps at all pixels of a channel.
            steps = torch.zeros(256, 3, 16, 16, dtype=torch.float64)
            steps[:, channel] = step * torch.eye(256, dtype=torch.float64).view(256, 16, 16)
            change = model(images + steps)[:, target] - model(images - steps)[:, target]
            expected[channel] = (change / (2 * step)).view(16, 16).numpy()

    found = make("gradient").explain(model, images, torch.tensor([target])).maps[0]

    np.testing.assert_allclose(found.numpy(), np.abs(expected).mean(axis=0), rtol=1e-5, atol=1e-9)


def naive_visual_backprop(features):
    """The method in loops, from its description: average, scale up by ones, multiply, towards the input.

    Args:
        features: For each layer, from first to last, the feature maps of one image (channels, h, w).
    """
    averages = [sum(maps) / len(maps) for maps in features]
    product = averages[-1]
    for average in averages[-2::-1]:
        height, width = average.shape
        stride_y, stride_x = height // product.shape[0], width // product.shape[1]
        # A transposed convolution of ones: every value is spread over its window, and windows overlap by one each side.
        large = np.zeros((height, width))
        for y, x in np.ndindex(product.shape):
            for out_y in range(y * stride_y - 1, (y + 1) * stride_y + 1):
                for out_x in range(x * stride_x - 1, (x + 1) * stride_x + 1):
                    if 0 <= out_y < height and 0 <= out_x < width:
                        large[out_y, out_x] += product[y, x]
        product = large * average
    return product


@pytest.mark.parametrize("architecture", ["small-cnn", "resnet20"])
def test_visual_backprop_equals_loops(architecture, prepared):
    model, images, layers = prepared(architecture)
    (explainer,) = make_for(layers, ["visual_backprop"])
    with torch.no_grad(), capture_outputs(model, explainer.layers) as outputs:
        model(images)

    found = explainer.explain(model, images, torch.full((3,), -1)).maps.numpy()

    for row in range(3):
        expected = naive_visual_backprop([outputs[name][row].double().numpy() for name in explainer.layers])
        np.testing.assert_allclose(found[row] / found[row].max(), expected / expected.max(), rtol=1e-3, atol=1e-6)


def test_visual_backprop_bridges_odd_sizes(tiny_net, smooth_images):
    # At 15 pixels the strided layer has 8 positions: no whole ratio leads back to 15.
    images = smooth_images(2, 15)
    model = out_of_place_(tiny_net(), images)

    maps = make("visual_backprop", layers=["act1", "act3"]).explain(model, images, torch.full((2,), -1)).maps

    assert maps.shape == (2, 15, 15)
    assert (maps >= 0).all()
    assert maps.std() > 0


def test_grad_cam_of_a_linear_head_by_hand(tiny_net, smooth_images):
    # With the mean over positions and one linear layer, dlogit/dA is head.weight / positions everywhere.
    images = smooth_images(2, 16)
    model = out_of_place_(tiny_net(), images)
    with torch.no_grad(), capture_outputs(model, ["act3"]) as outputs:
        model(images)
    features = outputs["act3"].numpy()
    weights = model.head.weight.detach().numpy()[1] / features[0, 0].size

    found = make("grad_cam", layer="act3").explain(model, images, torch.tensor([1, 1])).maps.numpy()

    expected = np.maximum(np.einsum("c,nchw->nhw", weights, features), 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_grad_cam_of_tokens_is_grad_cam_in_the_grid_of_patches(prepared):
    model, images, layers = prepared("vit")

    found = make("grad_cam", layer=layers.last).explain(model, images, TARGETS).maps

    with capture_outputs(model, [layers.last]) as outputs:
        scores = model(images).gather(1, TARGETS.unsqueeze(1))
    (gradient,) = torch.autograd.grad(scores.sum(), outputs[layers.last])
    features = outputs[layers.last].detach()
    for row, y, x in itertools.product(range(3), range(4), range(4)):
        # The class token is the first of 17; the weights are means over the patches alone.
        value = (features[row, 1 + 4 * y + x] * gradient[row, 1:].mean(dim=0)).sum()
        assert float(found[row, y, x]) == pytest.approx(max(float(value), 0), rel=1e-3, abs=1e-7)
    assert found.max() > 0


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [
        *((tokens, (224, 224), (14, 14)) for tokens in (196, 197, 201)),
        *((49, (32, 32), (7, 7)), (33, (16, 32), (4, 8)), (32, (32, 16), (8, 4))),
    ],
)
def test_tokens_are_a_grid_of_the_images_proportions(tokens, size, grid):
    assert require_patch_grid(tokens, size) == grid


@pytest.mark.parametrize(("tokens", "size"), [(35, (32, 32)), (197, (224, 112)), (1, (32, 32))])
def test_tokens_that_are_no_grid_are_refused(tokens, size):
    with pytest.raises(LayerNotFoundError, match="not a grid of patches"):
        require_patch_grid(tokens, size)


def test_attention_rollout_refuses_attention_within_windows():
    torch.manual_seed(0)
    network = SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=[2, 2], num_classes=3
    ).eval()
    with pytest.raises(LayerNotFoundError, match="attends within windows: take grad_cam"):
        make("attention_rollout").explain(network, torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))


def rollout(attention):
    """The method for one image in NumPy, from its description; attention of each layer (heads, tokens, tokens)."""
    product = np.eye(attention[0].shape[-1])
    for weights in attention:
        mixed = 0.5 * weights.mean(axis=0) + 0.5 * np.eye(weights.shape[-1])
        product = (mixed / mixed.sum(axis=-1, keepdims=True)) @ product
    return product


def test_attention_rollout_equals_numpy_on_torchs_attention(prepared):
    model, images, layers = prepared("vit")
    kept, handles = [], []
    for block in model.encoder.layers:
        attention = block.self_attention

        def keep(module, inputs, _kwargs, _output):
            width, heads = module.embed_dim, module.num_heads
            tokens = inputs[0].detach().double().numpy()
            weight, bias = (part.detach().double().numpy() for part in (module.in_proj_weight, module.in_proj_bias))
            query, key = (
                (tokens @ weight[place : place + width].T + bias[place : place + width])
                .reshape(*tokens.shape[:2], heads, -1)
                .transpose(0, 2, 1, 3)
                for place in (0, width)
            )
            scores = np.exp(query @ key.transpose(0, 1, 3, 2) / (width // heads) ** 0.5)
            kept.append(scores / scores.sum(axis=-1, keepdims=True))

        handles.append(attention.register_forward_hook(keep, with_kwargs=True))
    torch.testing.assert_close(model(images).shape, torch.Size([3, 10]))
    for handle in handles:
        handle.remove()

    found = make_for(layers, ["attention_rollout"])[0].explain(model, images, TARGETS).maps.numpy()

    for row in range(3):
        expected = rollout([weights[row] for weights in kept])[0, 1:].reshape(4, 4)
        np.testing.assert_allclose(found[row], expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["own", "timm"])
def test_attention_rollout_equals_numpy_on_separate_projections(kind, smooth_images):
    options = {"num_classes": 10, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 16, "patch_size": 4}
    torch.manual_seed(0)
    if kind == "own":
        model = ViT(num_classes=10, channels=3, image_size=16, patch=4, width=16, depth=2, heads=2)
    else:
        model = pytest.importorskip("timm").models.vision_transformer.VisionTransformer(**options)
    model, images, kept, handles = model.eval(), smooth_images(3, 16), [], []
    attention = [module for name, module in model.named_modules() if name.endswith(".attn")]
    for block in attention:
        nn.init.normal_(block.qkv.weight, std=0.5)

        def keep(_module, _inputs, output):
            tokens = output.shape[1]
            parts = output.detach().double().numpy().reshape(len(output), tokens, 3, 2, -1)
            query, key = parts[:, :, 0].transpose(0, 2, 1, 3), parts[:, :, 1].transpose(0, 2, 1, 3)
            scores = np.exp(query @ key.transpose(0, 1, 3, 2) / query.shape[-1] ** 0.5)
            kept.append(scores / scores.sum(axis=-1, keepdims=True))

        handles.append(block.qkv.register_forward_hook(keep))
    logits = model(images)
    for handle in handles:
        handle.remove()

    (explainer,) = make_for(find_layers(model, images), ["attention_rollout"])
    explained = explainer.explain(model, images, TARGETS)

    assert len(kept) == len(attention)
    for row in range(3):
        expected = rollout([weights[row] for weights in kept])[0, 1:].reshape(4, 4)
        np.testing.assert_allclose(explained.maps[row].numpy(), expected, rtol=1e-3)
    torch.testing.assert_close(explained.logits, logits.detach())


class Attends(nn.Module):
    """A transformer without a class token whose attention is a function: fused, with a scale, or written out."""

    def __init__(self, form):
        super().__init__()
        self.form, self.patches, self.head = form, nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 10)
        self.qkv = nn.ModuleList([nn.Linear(8, 24) for _ in range(2)])

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        for qkv in self.qkv:
            query, key, value = (
                part.unflatten(2, (2, 4)).transpose(1, 2) for part in (3 * qkv(tokens)).chunk(3, dim=2)
            )
            if self.form == "fused":
                mixed = nn.functional.scaled_dot_product_attention(query, key, value)
            elif self.form == "scaled":
                mixed = nn.functional.scaled_dot_product_attention(query, key, value, scale=0.5)
            else:
                mixed = (0.5 * query @ key.transpose(2, 3)).softmax(dim=-1) @ value
            tokens = tokens + mixed.transpose(1, 2).flatten(2)
        return self.head(tokens.mean(dim=1))


def test_attention_rollout_is_the_same_however_attention_is_written(smooth_images):
    images, maps = smooth_images(3, 16), []
    for form in ("fused", "scaled", "written out"):
        torch.manual_seed(0)
        maps.append(make("attention_rollout").explain(Attends(form), images, TARGETS).maps)

    assert maps[0].shape == (3, 4, 4)
    torch.testing.assert_close(maps[1], maps[0])
    torch.testing.assert_close(maps[2], maps[0])
    assert maps[0].flatten(1).std(dim=1).min() > 0
    # Every row of a rollout adds up to one.
    torch.testing.assert_close(maps[0].sum(dim=(1, 2)), torch.ones(3))
