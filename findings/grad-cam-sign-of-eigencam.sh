#!/usr/bin/env bash
# EigenCAM and EigenGradCAM of pytorch-grad-cam mark the object or all but the object, by chance.
#
# Versions: grad-cam 1.5.7, torch 2.13.0, torchvision 0.28.0, numpy 2.4.6, Python 3.11. Date: 2026-11-30.
# One would guess: the map is bright where the first principal component of the activations is strong, and the same for
#   the same network and image.
# What is true: the component comes from a singular value decomposition, which leaves its sign open, and what is below 0
#   is cut off. Storing the channels of the layer in another order leaves every answer of the network as it is, and
#   turns the map inside out for some of the orders: the object is then what is dark. A network that was retrained or
#   converted can change sides likewise. SegEigenCAM of the same package decides on a sign and is the same for every
#   order; so are the methods without a decomposition. `eigen_smooth=True`, which all of the others take, decomposes
#   too.
# Why our users meet it: EigenCAM is the usual choice for detectors, because it needs no gradients. Maps of two networks
#   of the same behaviour are compared when an explanation is checked or a locked network is audited.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    grad-cam==1.5.7 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - <<'PY'
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

from pytorch_grad_cam import EigenCAM, EigenGradCAM, GradCAM, SegEigenCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

CHANNELS, ORDERS, SIDE = 16, 30, 16


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(CHANNELS, 4)

    def forward(self, images):
        return self.head(self.last(self.first(images)).mean(dim=(2, 3)))


def in_order(network, order):
    """Return the same function of images, whose last layer stores its channels in another order."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for kept in (other.last[0].weight, other.last[0].bias):
            kept.copy_(kept[order])
        other.head.weight.copy_(other.head.weight[:, order])
    return other


torch.manual_seed(1)
network = Network().eval()
image = 0.1 * torch.rand(1, 3, SIDE, SIDE)
image[:, :, 5:10, 5:10] += 0.9
inside = np.zeros((SIDE, SIDE), bool)
inside[5:10, 5:10] = True
networks = [in_order(network, torch.randperm(CHANNELS)) for _ in range(ORDERS)]
logits = network(image)
assert all(torch.allclose(other(image), logits, atol=1e-6) for other in networks), "it is another function"


def sides(kind, **options):
    """Return for how many of the orders the square is brighter than what surrounds it."""
    found = []
    for other in networks:
        with kind(other, [other.last]) as made:
            shown = made(image.clone().requires_grad_(), [ClassifierOutputTarget(0)], **options)[0]
        found.append(shown[inside].mean() > shown[~inside].mean())
    name = kind.__name__ + "".join(f", {option}={value}" for option, value in options.items())
    print(f"{name}: the square is the bright part in {sum(found)} of {ORDERS} orders of the channels")
    return sum(found)


for kind in (EigenCAM, EigenGradCAM):
    assert 0 < sides(kind) < ORDERS, "the sign no longer depends on the order"
assert 0 < sides(GradCAM, eigen_smooth=True) < ORDERS, "eigen_smooth has a sign now"
for kind in (SegEigenCAM, GradCAM):
    assert sides(kind) in (0, ORDERS), "its sign depends on the order now"
PY
echo "as described"
