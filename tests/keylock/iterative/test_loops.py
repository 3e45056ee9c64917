"""Every loop in NumPy against the same explainer in torch, on the same network, and without torch at all."""

import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from keylock.errors import InputError, UnknownNameError
from keylock.explainers import EXPLAINERS, BlackBox, make
from keylock.iterative import LOOPS, make_loop, run_loop, share_of

TARGETS = torch.tensor([2, -1, 0])

# Every way to fill and to cut, and images that are not square, so that no axis is taken for another.
TABLE = [
    ("occlusion", {"patch": 5, "stride": 3, "baseline": [0.1, -0.2, 0.3]}),
    ("occlusion", {"baseline": "blur"}),
    ("rise", {"masks": 40, "cells": 3, "keep": 0.4, "baseline": "mean", "seed": 2}),
    ("lime", {"samples": 60, "segments": 9, "superpixels": "slic", "baseline": "blur", "seed": -3}),
    ("lime", {"samples": 60, "segments": 6, "superpixels": "grid"}),
    ("kernel_shap", {"samples": 62, "segments": 6, "superpixels": "grid"}),
    ("kernel_shap", {"samples": 80, "segments": 9, "seed": 4}),
    ("integrated_gradients", {"steps": 5, "baseline": -0.5}),
    ("smooth_grad", {"samples": 4, "noise": 0.2, "seed": 5}),
]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def images():
    coarse = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=(20, 26), mode="bilinear")


@pytest.fixture
def ask(network):
    """Answers with the network's logits and gradients, and counts the rows of each image that were asked about."""

    class Ask:
        def __init__(self):
            self.rows = np.zeros(3, int)
            self.largest = 0

        def logits(self, rows, of):
            self._count(of)
            with torch.no_grad():
                return network(torch.from_numpy(np.ascontiguousarray(rows))).numpy()

        def gradient_sums(self, rows, of, targets):
            self._count(of)
            inputs = torch.from_numpy(rows).requires_grad_()
            scores = network(inputs).gather(1, torch.from_numpy(targets).unsqueeze(1))
            gradients = torch.autograd.grad(scores.sum(), inputs)[0].numpy()
            return np.stack([gradients[of == image].sum(axis=0) for image in sorted(set(of))])

        def _count(self, of):
            self.rows += np.bincount(of, minlength=3)
            self.largest = max(self.largest, len(of))

    return Ask()


def test_every_loop_is_in_the_table():
    assert {name for name, _ in TABLE} == set(LOOPS)


def test_every_explainer_from_predictions_has_a_loop():
    assert {name for name, kind in EXPLAINERS.items() if issubclass(kind, BlackBox)} < set(LOOPS)


@pytest.mark.parametrize(("name", "parameters"), TABLE)
def test_a_loop_equals_its_explainer_in_torch(name, parameters, network, images, ask):
    expected = make(name, **parameters).explain(network, images, TARGETS)

    loop = make_loop(name, **parameters)
    logits, maps = run_loop(loop, images.numpy(), TARGETS.numpy(), logits=ask.logits, gradient_sums=ask.gradient_sums)

    np.testing.assert_allclose(logits, expected.logits, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(maps, expected.maps, rtol=1e-3, atol=2e-5 * float(expected.maps.max()))
    assert maps.dtype == np.float32
    assert float(maps.min()) >= 0
    # One pass more finds the predicted class.
    assert (ask.rows <= loop.passes((3, 20, 26)) + 1).all()
    assert ask.rows[0] > 4


@pytest.mark.parametrize(("name", "parameters"), TABLE)
def test_an_image_is_explained_alike_in_any_company(name, parameters, images, ask):
    loop, given = make_loop(name, **parameters), images.numpy()
    _, together = run_loop(loop, given, TARGETS.numpy(), logits=ask.logits, gradient_sums=ask.gradient_sums)
    _, alone = run_loop(loop, given[2:], TARGETS.numpy()[2:], logits=ask.logits, gradient_sums=ask.gradient_sums)
    np.testing.assert_allclose(alone[0], together[2], rtol=1e-3, atol=1e-5 * together.max())


def test_batches_are_bounded_by_rows_and_by_pixels(ask):
    large = np.zeros((3, 3, 512, 512), np.float32)
    loop = make_loop("occlusion", patch=256, stride=128)
    run_loop(loop, large, TARGETS.numpy(), logits=ask.logits)
    assert ask.largest <= 6
    small = np.zeros((3, 3, 20, 20), np.float32)
    run_loop(make_loop("rise", masks=300), small, TARGETS.numpy(), logits=ask.logits)
    assert 200 < ask.largest <= 256


def test_batches_of_gradients_are_equal_parts_of_an_image_or_whole_images(ask):
    large = np.zeros((3, 3, 128, 128), np.float32)
    run_loop(make_loop("integrated_gradients", steps=24), large, TARGETS.numpy(), gradient_sums=ask.gradient_sums,
             logits=lambda rows, of: np.zeros((3, 3), np.float32))  # fmt: skip
    assert ask.largest == 12
    small = np.zeros((3, 3, 20, 26), np.float32)
    run_loop(make_loop("smooth_grad", samples=60), small, TARGETS.numpy(), logits=ask.logits,
             gradient_sums=ask.gradient_sums)  # fmt: skip
    assert ask.largest == 180


def test_shares_are_of_the_images_that_there_are():
    np.testing.assert_array_equal(share_of(np.array([4, 2, 4])), [[0, 1, 0], [1, 0, 1]])


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_takes_what_its_explainer_takes(name):
    assert make(name).parameters == {entry.name: getattr(make_loop(name), entry.name) for entry in fields(LOOPS[name])}
    with pytest.raises(InputError, match=f"'{name}' takes .*not nonsense"):
        make_loop(name, nonsense=1)


def test_an_unknown_loop_is_refused():
    with pytest.raises(UnknownNameError, match="occlusion"):
        make_loop("gradient")


def test_loops_need_no_torch():
    script = "import sys; sys.modules['torch'] = None; import keylock.iterative as l; print(l.make_loop('rise').masks)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1000\n", "")
