"""Metrics against naive versions in NumPy, and intervals that cover."""

import numpy as np
import pytest
import torch

from keylock.evaluation import energy_inside, estimate_mean, pearson, top_overlap


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, 8, 8, generator=generator), torch.rand(5, 8, 8, generator=generator)


def test_pearson_equals_numpy(maps):
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(*(m.numpy() for m in maps), strict=True)]

    np.testing.assert_allclose(pearson(*maps).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 1.0])
def test_top_overlap_equals_sets(share, maps):
    count = max(1, round(share * 64))
    expected = [
        len(set(np.argsort(-a.ravel())[:count]) & set(np.argsort(-b.ravel())[:count])) / count
        for a, b in zip(*(m.numpy() for m in maps), strict=True)
    ]

    np.testing.assert_allclose(top_overlap(*maps, share=share).numpy(), expected)
    assert (top_overlap(maps[0], maps[0] * 7 + 1, share=share) == 1).all()


def test_energy_inside_equals_sums(maps):
    masks = maps[1] > 0.6
    expected = [(m * k).sum() / m.sum() for m, k in zip(maps[0].numpy(), masks.numpy(), strict=True)]

    np.testing.assert_allclose(energy_inside(maps[0], masks).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(energy_inside(maps[0] * 1e-9, masks).numpy(), expected, rtol=1e-4)


def test_energy_of_small_empty_and_constant_maps():
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[:, :4] = True
    masks[:, 4, :4] = True
    area = masks.float().mean()
    top = torch.zeros(1, 2, 2)
    top[:, 0] = 1

    assert float(energy_inside(torch.zeros(1, 2, 2), masks)) == pytest.approx(float(area))
    assert float(energy_inside(torch.ones(1, 2, 2), masks)) == pytest.approx(float(area))
    assert energy_inside(top, masks) > 0.85


def test_interval_holds_the_mean_and_narrows_with_more_images():
    generator = np.random.default_rng(0)
    few, many = (estimate_mean(torch.tensor(generator.normal(2, 1, count))) for count in (30, 3000))

    for estimate in (few, many):
        assert estimate.low < estimate.value < estimate.high
    # 1.96 standard errors to each side.
    assert many.high - many.low == pytest.approx(2 * 1.96 / np.sqrt(3000), rel=0.15)
    assert few.high - few.low > 5 * (many.high - many.low)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    estimates = [estimate_mean(torch.tensor(generator.normal(0, 1, 60)), seed=seed) for seed in range(200)]

    assert 0.88 <= np.mean([low <= 0 <= high for _, low, high in estimates]) <= 0.99


def test_interval_of_a_constant_is_a_point_and_the_same_every_time():
    assert estimate_mean(torch.full((9,), 0.25)) == (0.25, 0.25, 0.25)
    values = torch.rand(20)
    assert estimate_mean(values) == estimate_mean(values)
