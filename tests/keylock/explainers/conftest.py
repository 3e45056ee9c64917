"""What the tests of explainers share: models as the lock prepares them, and explainers of sizes that suit them."""

import copy

import pytest
import torch
from torchvision.models import VisionTransformer

from keylock.explainers import EXPLAINERS, make
from keylock.models import find_layers, prepare

SIZES = {
    "small-cnn": 16,
    "resnet20": 16,
    "tiny": 16,
    "vit": 16,
    "densenet-short": 32,
    "squeezenet1_1": 48,
    "vgg11_bn": 48,
}
SMALL = {
    "smooth_grad": {"samples": 3},
    "integrated_gradients": {"steps": 3},
    "occlusion": {"patch": 6, "stride": 4},
    "rise": {"masks": 40, "cells": 3},
    "lime": {"samples": 30, "segments": 9},
    "kernel_shap": {"samples": 30, "segments": 9},
}


def transformer():
    """A vision transformer of torchvision's kind, as small as it can be, with a head that is not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = VisionTransformer(
            image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10
        )
        torch.nn.init.normal_(model.heads.head.weight)
        for layer in model.encoder.layers:
            torch.nn.init.normal_(layer.self_attention.in_proj_weight, std=0.5)
    return model.eval()


@pytest.fixture
def prepared(network, tiny_net, smooth_images):
    """A model as the lock prepares it, images for it, and the layers of it that explainers look at."""

    def make_case(architecture, *, count=3):
        images = smooth_images(count, SIZES[architecture])
        if architecture == "vit":
            model = transformer()
            return model, images, find_layers(model, images)
        model = tiny_net() if architecture == "tiny" else copy.deepcopy(network(architecture))
        model = prepare(model, images)
        return model, images, find_layers(model, images)

    return make_case


@pytest.fixture
def small():
    """Make an explainer by name, of few samples."""

    def make_small(name, layers, **parameters):
        return make(name, **{**EXPLAINERS[name].defaults(layers), **SMALL.get(name, {}), **parameters})

    return make_small
