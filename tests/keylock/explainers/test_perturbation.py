"""The perturbation family against second implementations: Captum, exact Shapley values, loops in NumPy."""

import itertools
import math

import numpy as np
import pytest
import torch
from captum._utils.models import Model
from captum.attr import Lime, ShapleyValues
from captum.attr import Occlusion as CaptumOcclusion
from torch import nn

from keylock.errors import InputError
from keylock.explainers import make
from keylock.iterative.drawing import source_of
from keylock.iterative.fills import blank_images
from keylock.iterative.superpixels import grid_segments, slic_segments

TARGETS = torch.tensor([1, 0, 2])


@pytest.fixture
def case(tiny_net, smooth_images):
    """A small classifier whose answers are not all the same, and images."""
    model = tiny_net()
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    return model, smooth_images(3, 16)


def probability(model):
    return lambda images: model(images).softmax(dim=1)


@pytest.mark.parametrize(("patch", "stride"), [(4, 4), (5, 3), (16, 1), (3, 2)])
def test_occlusion_equals_captum(patch, stride, case):
    model, images = case
    with torch.no_grad():
        expected = CaptumOcclusion(probability(model)).attribute(
            images, (3, patch, patch), strides=(3, stride, stride), baselines=0.3, target=TARGETS
        )

    found = make("occlusion", patch=patch, stride=stride, baseline=0.3).explain(model, images, TARGETS).maps

    torch.testing.assert_close(found, expected[:, 0].clamp_min(0).float(), rtol=1e-3, atol=2e-6)
    assert found.max() > 1e-3


def test_occlusion_of_unnamed_size_takes_a_quarter_of_the_image(case):
    model, images = case
    named = make("occlusion", patch=4, stride=2).explain(model, images, TARGETS).maps
    assert torch.equal(make("occlusion").explain(model, images, TARGETS).maps, named)


def test_rise_equals_loops(case):
    model, images = case
    explainer = make("rise", masks=20, cells=3, keep=0.4, baseline=[0.1, -0.2, 0.3], seed=2)
    masks = explainer.draw(16, 16, source_of(2)).enlarged()
    expected, fill = np.zeros((3, 16, 16)), np.array([0.1, -0.2, 0.3], dtype=np.float32).reshape(3, 1, 1)
    for row, mask in itertools.product(range(3), masks):
        seen = mask * images[row].numpy() + (1 - mask) * fill
        logits = model(torch.from_numpy(seen).unsqueeze(0))[0].detach().double().numpy()
        expected[row] += np.exp(logits[TARGETS[row]]) / np.exp(logits).sum() * mask / (20 * 0.4)

    found = explainer.explain(model, images, TARGETS).maps

    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_masks_of_rise_are_smooth_and_keep_their_share():
    drawn = make("rise", masks=400, cells=4, keep=0.3).draw(21, 30, source_of(0))
    masks = torch.from_numpy(drawn.enlarged())
    assert torch.equal(torch.from_numpy(drawn.enlarged(slice(7, 9))), masks[7:9])

    assert masks.shape == (400, 21, 30)
    assert 0 <= float(masks.min()) < 0.01
    assert 0.99 < float(masks.max()) <= 1
    assert float(masks.mean()) == pytest.approx(0.3, abs=0.02)
    # Every pixel is kept as often as any other, and a cell of 8 pixels takes at least 8 to fade.
    assert float(masks.mean(dim=0).std()) < 0.04
    assert float((masks[:, :, 1:] - masks[:, :, :-1]).abs().max()) <= 1 / 8 + 1e-6


def test_kernel_shap_of_all_coalitions_is_captums_shapley_values(case):
    model, images = case
    segments = torch.tensor(grid_segments(images.numpy(), 6))
    attribution = ShapleyValues(probability(model))
    explainer = make("kernel_shap", samples=62, segments=6, superpixels="grid", baseline=-0.4)
    with torch.no_grad():
        expected = attribution.attribute(
            images,
            baselines=-0.4,
            target=TARGETS,
            feature_mask=segments.unsqueeze(1).contiguous(),
            perturbations_per_eval=64,
        )

    found = explainer.explain(model, images, TARGETS).maps

    torch.testing.assert_close(found, expected[:, 0].clamp_min(0).float(), rtol=1e-3, atol=2e-6)
    assert found.max() > 1e-3


def test_kernel_shap_by_drawn_coalitions_comes_close_to_the_exact_values(case):
    model, images = case
    options = {"segments": 9, "superpixels": "grid"}
    exact = make("kernel_shap", samples=510, **options).explain(model, images, TARGETS).maps
    drawn = make("kernel_shap", samples=300, **options).explain(model, images, TARGETS).maps

    assert not torch.equal(exact, drawn)
    assert float((exact - drawn).abs().max()) < 0.1 * float(exact.max())


def test_drawn_coalitions_have_the_sizes_of_the_kernel():
    coalitions, weights = make("kernel_shap", samples=6000).coalitions(14, source_of(0))
    sizes = coalitions.sum(axis=1)
    kernel = np.array([1 / (size * (14 - size)) for size in range(1, 14)])

    assert (weights == 1).all()
    found = np.bincount(sizes, minlength=15)
    assert found[0] == found[14] == 0
    np.testing.assert_allclose(found[1:14] / 6000, kernel / kernel.sum(), atol=0.015)
    # Members of equally large coalitions are equally likely, and each comes with its complement.
    np.testing.assert_allclose(coalitions.mean(axis=0), 0.5, atol=1e-6)
    np.testing.assert_array_equal(coalitions[::2], 1 - coalitions[1::2])


class WeightedRidge(Model):
    """The linear model of the test's own: NumPy's least squares on rows scaled by the roots of their weights."""

    def __init__(self):
        self.weights = None

    def fit(self, train_data, **_options):
        ((features, answers, weights),) = train_data
        root = weights.double().sqrt().numpy().reshape(-1, 1)
        rows = np.hstack([features.double().numpy(), np.ones((len(features), 1))]) * root
        ridge = np.hstack([math.sqrt(1e-3) * np.eye(features.shape[1]), np.zeros((features.shape[1], 1))])
        wanted = np.concatenate([answers.double().numpy().ravel() * root.ravel(), np.zeros(features.shape[1])])
        self.weights = np.linalg.lstsq(np.vstack([rows, ridge]), wanted, rcond=None)[0][:-1]
        return {}

    def representation(self):
        return torch.from_numpy(self.weights)

    def __call__(self, features):
        return features


def cosine_kernel(_original, _perturbed, pattern, **_options):
    distance = 1 - pattern.sum() / (pattern.norm() * math.sqrt(pattern.numel())).clamp_min(1e-12)
    return float(torch.exp(-(distance**2) / 0.25**2))


def test_lime_equals_captum_on_the_same_patterns(case):
    model, images = case
    segments = torch.tensor(grid_segments(images.numpy(), 6))
    explainer = make("lime", samples=60, segments=6, superpixels="grid", baseline=0.2, seed=3)
    patterns = torch.from_numpy(explainer.draw_patterns(6, source_of(3)))
    queue = []
    attribution = Lime(
        probability(model),
        interpretable_model=WeightedRidge(),
        similarity_func=cosine_kernel,
        perturb_func=lambda _original, **_options: queue.pop(0).view(1, -1).double(),
    )

    found = explainer.explain(model, images, TARGETS).maps

    for row in range(3):
        queue[:] = list(patterns)
        expected = attribution.attribute(
            images[row : row + 1],
            baselines=0.2,
            target=int(TARGETS[row]),
            feature_mask=segments[row : row + 1].unsqueeze(1),
            n_samples=60,
        )
        torch.testing.assert_close(found[row], expected[0, 0].clamp_min(0).float(), rtol=1e-3, atol=1e-5)
    assert found.max() > 1e-3


def test_lime_finds_a_linear_model():
    explainer = make("lime", samples=40, segments=4, ridge=0)
    patterns = explainer.draw_patterns(4, source_of(0))
    weights = np.array([[0.5, -0.2, 0.0, 0.1]])

    found = explainer.fit(patterns, 0.3 + weights @ patterns.T)

    np.testing.assert_allclose(found, weights, atol=1e-12)
    assert patterns[0].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["occlusion", "rise", "lime", "kernel_shap"])
def test_evidence_in_one_corner_is_found_there(name, smooth_images):
    def looks_at_a_corner(images):
        brightness = images[:, :, :6, :6].mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(brightness), 10 * brightness - 10], dim=1)

    images = smooth_images(2, 24) * 0.1
    images[:, :, :6, :6] += 2
    options = {"samples": 200, "segments": 16} if name in {"lime", "kernel_shap"} else {}
    maps = make(name, **options).explain(looks_at_a_corner, images, torch.tensor([1, 1])).maps

    inside, outside = maps[:, :6, :6].mean(), maps[:, 10:, 10:].mean()
    assert inside > (1.2 if name == "rise" else 8) * outside


def test_confident_answers_still_differ(smooth_images):
    def confident(images):
        margin = 30 + images[:, :, :4].mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(margin), margin], dim=1)

    maps = make("occlusion", patch=4).explain(confident, smooth_images(2, 16) + 1, torch.tensor([1, 1])).maps

    assert 0 < float(maps.max()) < 1e-12
    assert float(maps[:, :4].mean()) > 5 * float(maps[:, 6:].mean())


def test_grid_segments_are_equal_rectangles(smooth_images):
    numbers = grid_segments(smooth_images(2, 12).numpy(), 9)
    assert np.bincount(numbers[0].ravel()).tolist() == [16] * 9
    np.testing.assert_array_equal(numbers[0], numbers[1])
    wide = grid_segments(np.zeros((1, 3, 10, 40), np.float32), 16)
    assert np.bincount(wide.ravel()).tolist() == [25] * 16
    assert grid_segments(np.zeros((1, 3, 3, 3), np.float32), 100).max() == 8


def test_slic_follows_colours(smooth_images):
    # Two colours whose border runs between the lines of the grid.
    images = np.zeros((1, 3, 24, 24), np.float32)
    images[:, 0, :, 10:] = 3
    numbers = slic_segments(images, 9)[0]

    across = np.intersect1d(numbers[:, :10], numbers[:, 10:])
    assert across.size == 0
    assert len(np.unique(numbers)) >= 4
    grid = grid_segments(images, 9)[0]
    assert np.intersect1d(grid[:, :10], grid[:, 10:]).size


def test_blank_images():
    images = np.random.default_rng(0).random((2, 3, 20, 24), dtype=np.float32)

    assert (blank_images(images, 0.25) == 0.25).all()
    assert blank_images(images, (1.0, 2.0, 3.0))[1, :, 4, 5].tolist() == [1, 2, 3]
    np.testing.assert_allclose(blank_images(images, "mean")[:, :, 0, 0], images.mean(axis=(2, 3)), rtol=1e-6)
    blurred = blank_images(images, "blur")
    assert blurred.shape == images.shape
    assert blurred.std() < 0.2 * images.std()
    np.testing.assert_allclose(blank_images(np.ones((1, 3, 9, 9), np.float32), "blur"), 1, rtol=1e-6)
    with pytest.raises(InputError, match="2 values to fill 3 channels"):
        blank_images(images, (0.0, 1.0))
