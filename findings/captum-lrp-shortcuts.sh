#!/usr/bin/env bash
# Captum's LRP makes up relevance wherever a network has a shortcut, and more with every one.
#
# Versions: captum 0.9.0, torch 2.13.0, numpy 2.4.6, Python 3.11. Date: 2026-11-30.
# One would guess: LRP shares the class's score out, so that a map sums to the score. A network that it cannot treat is
#   refused, as one with a layer that has no rule is ("has no rule defined").
# What is true: rules belong to modules, and the addition of a shortcut (`x + y`) is no module. Each branch is given the
#   whole relevance of the sum instead of its share of it, and divides it by a value that is only its own. In a network
#   of ReLU and convolutions without biases, where LRP is input times gradient, one block is enough for a map that has
#   nothing to do with it, and eight blocks make one that sums to more than a million times the score. Nothing is raised
#   and nothing warned of; only who asks for the convergence delta sees it. Without the shortcuts the same network's map
#   is right.
# Why our users meet it: ResNets are what is explained most, and LRP is in every list of methods. An implementation of
#   LRP that is compared with this one differs on them, and it is this one that is wrong.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    captum==0.9.0 torch==2.13.0 numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - <<'PY'
import warnings

import numpy as np
import torch
from captum.attr import LRP, InputXGradient
from torch import nn

CHANNELS = 8


def convolution(given):
    return nn.Conv2d(given, CHANNELS, 3, padding=1, bias=False)


class Block(nn.Module):
    """Two convolutions, with a shortcut past them or without."""

    def __init__(self, shortcut):
        super().__init__()
        self.body = nn.Sequential(convolution(CHANNELS), nn.ReLU(), convolution(CHANNELS))
        self.relu = nn.ReLU()
        self.shortcut = shortcut

    def forward(self, values):
        changed = self.body(values)
        return self.relu(values + changed if self.shortcut else changed)


class Network(nn.Module):
    def __init__(self, blocks, shortcut):
        super().__init__()
        body = [Block(shortcut) for _ in range(blocks)]
        self.body = nn.Sequential(convolution(3), nn.ReLU(), *body, nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(CHANNELS, 4, bias=False)

    def forward(self, images):
        return self.head(self.body(images).flatten(1))


def compare(blocks, shortcut):
    """Return what LRP's map sums to as a multiple of the score, and its correlation with input times gradient."""
    torch.manual_seed(1)
    network = Network(blocks, shortcut).eval()
    image = torch.rand(1, 3, 16, 16)
    score = network(image)[0, 0].item()
    relevance = LRP(network).attribute(image, target=0).detach().numpy()
    defined = InputXGradient(network).attribute(image, target=0).detach().numpy()
    assert np.isclose(defined.sum(), score, rtol=1e-2), "input times gradient does not sum to the score"
    times, alike = relevance.sum() / score, np.corrcoef(relevance.ravel(), defined.ravel())[0, 1]
    print(
        f"{blocks} block(s) {'with' if shortcut else 'without'} shortcuts: LRP sums to {times:.4g} times the score, "
        f"correlation with input x gradient {alike:.3f}"
    )
    return times, alike


with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for blocks in (1, 2, 4):
        times, alike = compare(blocks, shortcut=False)
        assert abs(times - 1) < 1e-2 and alike > 0.99, "it is wrong without shortcuts as well"
    for blocks in (1, 2, 4, 8):
        times, alike = compare(blocks, shortcut=True)
        assert abs(times - 1) > 0.1 and alike < 0.5, "shortcuts are treated now"
    assert abs(times) > 1e6, "it grows less with the depth now"
told = [str(one.message) for one in said if "relevance" in str(one.message) or "residual" in str(one.message)]
print("warnings that speak of it:", told or "none")
assert not told, "it warns now"
PY
echo "as described"
