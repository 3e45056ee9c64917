#!/usr/bin/env bash
# Captum's LayerFeaturePermutation cannot be asked for a class.
#
# Versions: captum 0.9.0, torch 2.13.0, numpy 2.4.6, Python 3.11. Date: 2026-11-30.
# One would guess: `target` names the class, as it does for every other method of Captum and as this one's documentation
#   says; LayerFeatureAblation, which it is described as being similar to, takes the very same arguments.
# What is true: the class's score is chosen from the logits in the layer's function and then chosen again from what is
#   left, which has no classes: every `target` for a network with more than one output ends with an AssertionError,
#   "Cannot choose target column with output shape" where it is a number. It works for functions that give one number
#   per image, without `target`.
# Why our users meet it: whoever runs all of Captum's methods over one classifier, as an audit does. The class has to be
#   chosen in the function that is handed over.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    captum==0.9.0 torch==2.13.0 numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - <<'PY'
import torch
from captum.attr import FeaturePermutation, LayerFeatureAblation, LayerFeaturePermutation
from torch import nn

torch.manual_seed(0)
network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
rows = torch.rand(6, 3)
layer = network[1]


def try_for(name, attribute, **given):
    try:
        shape = tuple(attribute(rows, **given).shape)
    except AssertionError as error:
        print(f"{name}: {error}")
        return str(error)
    print(f"{name}: a map of shape {shape}")
    return shape


ablation = try_for("LayerFeatureAblation, target=2", LayerFeatureAblation(network, layer).attribute, target=2)
inputs = try_for("FeaturePermutation, target=2", FeaturePermutation(network).attribute, target=2)
assert ablation == (6, 5), "LayerFeatureAblation fails as well now"
assert inputs[-1] == 3, "FeaturePermutation fails as well now"
for target in (2, [0, 1, 2, 3, 0, 1], torch.tensor([0, 1, 2, 3, 0, 1])):
    said = try_for(
        f"LayerFeaturePermutation, target={target}", LayerFeaturePermutation(network, layer).attribute, target=target
    )
    assert isinstance(said, str), "it can be asked for a class now"
chosen = try_for(
    "LayerFeaturePermutation of the class's score",
    LayerFeaturePermutation(lambda given: network(given)[:, 2], layer).attribute,
)
assert not isinstance(chosen, str) and chosen[-1] == 5, "it no longer works without a class"
PY
echo "as described"
