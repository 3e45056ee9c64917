#!/usr/bin/env bash
# AblationCAM of pytorch-grad-cam weighs the channels of SiLU or GELU layers by their number.
#
# Versions: grad-cam 1.5.7, torch 2.13.0, torchvision 0.28.0, numpy 2.4.6, Python 3.11. Date: 2026-11-30.
# One would guess: a channel is ablated by setting it to 0, as in the paper, and what it weighs is how much the class's
#   score falls. In which order the channels are stored changes nothing.
# What is true: channels are set to 0 only where the layer's smallest value is exactly 0, as after a ReLU. Elsewhere the
#   first of a batch of channels is set to that smallest value less ten million, and each next one to the smallest value
#   by then, less ten million more: the 16th channel gets -160,000,000. The score falls in proportion, so a channel
#   weighs more the later it comes in its batch of 32. Storing the same channels in another order, which leaves the
#   network's every answer as it is, gives another map. There is no warning.
# Why our users meet it: EfficientNet (SiLU), ConvNeXt (GELU) and the tokens of a vision transformer are such layers,
#   and a map like this looks as plausible as any.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    grad-cam==1.5.7 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - 2> "$place/said" <<'PY' || { cat "$place/said" >&2; exit 1; }
import copy
from importlib.metadata import version

import numpy as np
import torch
from torch import nn

if torch.version.cuda is None and "+" not in version("torchvision"):
    # A torch for processors alone cannot load these two operators of torchvision's wheel. Nothing here uses them.
    declared = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from pytorch_grad_cam import AblationCAM, AblationLayer, GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

CHANNELS = 16


class Network(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), activation())
        self.last = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), activation())
        self.head = nn.Linear(CHANNELS, 4)

    def forward(self, images):
        return self.head(self.last(self.first(images)).mean(dim=(2, 3)))


def in_reverse(network):
    """Return the same function of images, whose last layer stores its channels the other way round."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for kept in (other.last[0].weight, other.last[0].bias):
            kept.copy_(kept.flip(0))
        other.head.weight.copy_(other.head.weight.flip(1))
    return other


class Watched(AblationLayer):
    """The library's own layer; notes the smallest value of each channel's row as it hands them on."""

    def __call__(self, values):
        given = super().__call__(values)
        self.smallest = given.amin(dim=(1, 2, 3)).tolist()
        return given


def map_of(kind, network, image, **options):
    made = kind(network, [network.last], **options)
    return made(image.clone().requires_grad_(), [ClassifierOutputTarget(0)])[0]


def correlation(first, second):
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def examine(activation):
    torch.manual_seed(1)
    network = Network(activation).eval()
    image = torch.rand(1, 3, 16, 16)
    other = in_reverse(network)
    assert torch.allclose(network(image), other(image), atol=1e-6), "it is another function"
    watched = Watched()
    ablation = map_of(AblationCAM, network, image, ablation_layer=watched)
    reversed_ablation = map_of(AblationCAM, other, image)
    alike = correlation(ablation, reversed_ablation)
    usual = correlation(map_of(GradCAM, network, image), map_of(GradCAM, other, image))
    name = activation.__name__
    print(f"{name}: channels 1, 2 and 16 ablated to", *(f"{watched.smallest[index]:.3g}" for index in (0, 1, 15)))
    print(f"{name}: maps of the two orders correlate by {alike:.3f} with AblationCAM, {usual:.3f} with Grad-CAM")
    return watched.smallest, alike, usual


for activation in (nn.SiLU, nn.GELU):
    smallest, alike, usual = examine(activation)
    steps = np.diff([0, *smallest])
    assert np.allclose(steps, -1e7, rtol=1e-3), "channels are ablated otherwise now"
    assert alike < 0.9, "the order no longer matters"
    assert usual > 0.999, "it is another function"
smallest, alike, usual = examine(nn.ReLU)
assert min(smallest) == 0, "channels of a ReLU are not set to 0 now"
assert alike > 0.999, "the order matters for a ReLU as well now"
PY
echo "as described"
