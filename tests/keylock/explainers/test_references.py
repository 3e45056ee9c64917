"""Each explainer against a second implementation: Captum, finite differences, loops in NumPy."""

import copy

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, Saliency

from keylock.explainers import make, make_for
from keylock.models import capture_outputs, find_layers, fold_batchnorm_, out_of_place_

SIZES = {"small-cnn": 16, "resnet20": 16, "densenet-short": 32, "squeezenet1_1": 48}


@pytest.fixture
def case(network, smooth_images):
    def make_case(architecture, count=3):
        images = smooth_images(count, SIZES[architecture])
        return fold_batchnorm_(out_of_place_(copy.deepcopy(network(architecture))), images), images

    return make_case


@pytest.mark.parametrize("architecture", SIZES)
def test_grad_cam_equals_captum(architecture, case):
    model, images = case(architecture)
    (explainer,) = make_for(find_layers(model, images), ["grad_cam"])
    if architecture == "densenet-short":
        # Its last layer is rectified in place, where Captum reads what was there before.
        explainer = make("grad_cam", layer="features.denseblock2.denselayer2.conv2")
    targets = torch.tensor([4, 0, 9])

    found = explainer.explain(model, images, targets).maps
    layer = model.get_submodule(explainer.layer)
    expected = LayerGradCam(model, layer).attribute(images, targets, relu_attributions=True)

    torch.testing.assert_close(found, expected[:, 0].detach(), rtol=1e-4, atol=1e-7)
    assert found.max() > 0


@pytest.mark.parametrize("architecture", SIZES)
def test_gradient_equals_captum(architecture, case):
    model, images = case(architecture)
    targets = torch.tensor([4, 0, 9])

    found = make("gradient").explain(model, images, targets).maps
    expected = Saliency(model).attribute(images.clone().requires_grad_(), targets, abs=True)

    torch.testing.assert_close(found, expected.mean(dim=1).detach(), rtol=1e-4, atol=1e-8)


def test_gradient_equals_finite_differences(case):
    model, images = case("small-cnn", count=1)
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
def test_visual_backprop_equals_loops(architecture, case):
    model, images = case(architecture)
    (explainer,) = make_for(find_layers(model, images), ["visual_backprop"])
    with torch.no_grad(), capture_outputs(model, explainer.layers) as outputs:
        model(images)

    found = explainer.explain(model, images, torch.full((3,), -1)).maps.numpy()

    for row in range(3):
        expected = naive_visual_backprop([outputs[name][row].double().numpy() for name in explainer.layers])
        np.testing.assert_allclose(found[row] / found[row].max(), expected / expected.max(), rtol=1e-3, atol=1e-6)


def test_visual_backprop_bridges_odd_sizes(tiny_net, smooth_images):
    # At 15 pixels the strided layer has 8 positions: no whole ratio leads back to 15.
    model, images = out_of_place_(tiny_net()), smooth_images(2, 15)

    maps = make("visual_backprop", layers=["act1", "act3"]).explain(model, images, torch.full((2,), -1)).maps

    assert maps.shape == (2, 15, 15)
    assert (maps >= 0).all()
    assert maps.std() > 0


def test_grad_cam_of_a_linear_head_by_hand(tiny_net, smooth_images):
    # With the mean over positions and one linear layer, dlogit/dA is head.weight / positions everywhere.
    model, images = out_of_place_(tiny_net()), smooth_images(2, 16)
    with torch.no_grad(), capture_outputs(model, ["act3"]) as outputs:
        model(images)
    features = outputs["act3"].numpy()
    weights = model.head.weight.detach().numpy()[1] / features[0, 0].size

    found = make("grad_cam", layer="act3").explain(model, images, torch.tensor([1, 1])).maps.numpy()

    expected = np.maximum(np.einsum("c,nchw->nhw", weights, features), 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
