#!/usr/bin/env bash
# MONAI's Grad-CAM gives 0 for the most important place and 1 for the least.
#
# Versions: monai 1.6.1, captum 0.9.0, torch 2.13.0, numpy 2.4.6, Python 3.11. Date: 2026-11-30.
# One would guess: a map of Grad-CAM is large where the class's evidence is, as in the paper that its documentation
#   names and in every other toolkit.
# What is true: what is computed is that; then the default `postprocessing` scales it from 1 to 0, so the map correlates
#   by -1 with Captum's. A note at that function says so, the documentation of GradCAM does not. A class without any
#   evidence (a map of zeros before the scaling) stays 0 everywhere, which the other maps use for the strongest
#   evidence. GradCAMpp does likewise. With `postprocessing=lambda cam: cam` the map is the paper's.
# Why our users meet it: medical images, where MONAI is at home, and maps of two toolkits that are compared or averaged.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    monai==1.6.1 captum==0.9.0 torch==2.13.0 numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - <<'PY'
import warnings

warnings.filterwarnings("ignore", category=FutureWarning)

import numpy as np
import torch
from captum.attr import LayerGradCam
from monai.visualize import GradCAM, GradCAMpp
from torch import nn

torch.manual_seed(0)
network = nn.Sequential()
network.add_module("features", nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()))
network.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
network.add_module("head", nn.Linear(8, 3))
with torch.no_grad():
    network.head.weight.abs_()
    network.head.weight[2] *= -1
network.eval()
image = torch.rand(1, 1, 24, 24).requires_grad_()
FOR, AGAINST = 0, 2


def correlation(first, second):
    return float(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1])


captum = LayerGradCam(network, network.features).attribute(image, target=FOR, relu_attributions=True)
captum = captum.detach().numpy()
ways = {
    "GradCAM": GradCAM(nn_module=network, target_layers="features"),
    "GradCAMpp": GradCAMpp(nn_module=network, target_layers="features"),
}
maps = {name: way(image, class_idx=FOR).detach().numpy() for name, way in ways.items()}
alike = {name: correlation(one, captum) for name, one in maps.items()}
for name, value in alike.items():
    print(f"MONAI's {name} and Captum's Grad-CAM: correlation {value:.4f}")
found = maps["GradCAM"]
print(f"MONAI's GradCAM where Captum's is largest: {found.ravel()[captum.argmax()]:.3f}")
plain = GradCAM(nn_module=network, target_layers="features", postprocessing=lambda cam: cam)
untouched = correlation(plain(image, class_idx=FOR).detach().numpy(), captum)
print(f"MONAI's GradCAM without postprocessing and Captum's: correlation {untouched:.4f}")
dead = ways["GradCAM"](image, class_idx=AGAINST).detach().numpy()
print(f"a class without evidence: from {dead.min():.3f} to {dead.max():.3f}")
assert alike["GradCAM"] < -0.9999, "it is not inverted now"
assert alike["GradCAMpp"] < 0, "GradCAMpp is not inverted now"
assert found.ravel()[captum.argmax()] == 0, "the most important place is not 0 now"
assert untouched > 0.9999, "it is inverted before the postprocessing as well"
assert dead.min() == dead.max() == 0, "a map without evidence looks otherwise now"
PY
echo "as described"
